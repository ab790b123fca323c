"""A package, so that its fixtures end with it: until then an event loop of the browser runs, and no other can."""
