"""What a contract says of its messages beyond their types. The messages are generated from proto/tandem/options."""
