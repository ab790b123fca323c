"""A library's loans: a domain of its own on the engine. README.md says what is where."""
