"""Writes the README.md of a compressed model, which is the model card on the Hub."""
