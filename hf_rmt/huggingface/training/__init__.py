"""Callbacks for the Trainer, and `filter_update`, which filters what a training added."""
