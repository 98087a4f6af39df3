"""Writes and checks the files of a saved model: weights, config, code and model card."""
