"""Compression of one weight, then of one model: torch, and no Hugging Face library."""
