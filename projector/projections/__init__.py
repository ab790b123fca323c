"""One file a view: pure functions from the view as it is (or none) and an event to the view as it is then (or none).

No SQL, no clock, no look-ups in here: an event carries all that a view needs.
"""
