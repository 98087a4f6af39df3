"""Compresses one weight or a whole model. It needs torch, but no Hugging Face library."""
