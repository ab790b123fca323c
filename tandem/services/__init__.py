"""For operators and callers of every domain: receipts, views, audits. Made of proto/tandem/services."""
