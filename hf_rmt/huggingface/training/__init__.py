"""Callbacks of the Trainer, and the filter of what a training added."""
