"""Compresses one weight or a whole model. The code needs torch, but no Hugging Face library."""
