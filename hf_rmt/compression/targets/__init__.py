"""Which layers are compressed: names and blocks, layers that stay dense, and what is covered."""
