"""Where the time goes: `make bench-profile`.

The services run as they are, and note when each step of their work was done (`marks`). Three profiles are made of that:
of a batch in a thread of the command server, of an event in a rebuild of all views, and of a single order's way from
its acknowledgement to the answer of a read that waited for it.
"""
