"""What every domain's contract uses: a command's receipt, how fresh an answer must be. Made of proto/tandem/type."""
