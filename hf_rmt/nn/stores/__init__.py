"""Packed tensors: codes and scales of noise, signs of ternary weights, made dense again."""
