"""What the engine stores in opaque values and rows. The messages are generated from proto/tandem/internal."""
