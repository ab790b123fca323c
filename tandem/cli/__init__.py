"""The `tandem` command for any domain: starts the whole of it on one machine, migrates, and shows its state.

It talks to the services over gRPC and starts them as processes; it imports none of them.
"""
