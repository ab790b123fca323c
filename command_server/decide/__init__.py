"""The business rules: pure functions from a command and the aggregates to events, or a refusal. One file an aggregate.

No SQL, no gRPC, no clock and no randomness in here: what a rule needs of them is in the command.
"""
