"""CommandService: validates writes and stores them, with their events and receipts, in one transaction a batch."""
