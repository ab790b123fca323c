"""The write database: its tables, bulk load and save of aggregates, receipts, and the append to the feed."""
