"""Programs that Tandem is measured against, each in a process of its own."""
