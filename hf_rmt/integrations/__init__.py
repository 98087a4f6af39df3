"""Everything that knows transformers and the Hub."""
