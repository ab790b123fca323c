"""Commands: those that wait together are decided on loaded rows and stored with their events, in one transaction.

A command server hands this package one description of its domain (tandem.commands.domain).
"""
