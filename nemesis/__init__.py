"""Breaks everything between many clients and all parts of Tandem, and proves that no guarantee was broken.

`history` is what the clients record, `checker` is pure and compares it with the feed, `stores` compares the stores with
each other, `faults` and `failover` break things, and `soak` lets things run.
"""
