"""Writes what a domain begins with, and what it gets more: its part of the contract, stubs, and tests that fail."""
