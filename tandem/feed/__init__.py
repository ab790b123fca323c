"""The arrow from command_server to projector: the change feed. Its table, positions and tokens, and how it is read.

Only command_server writes here (in its transaction), and its migrations make the tables.
"""
