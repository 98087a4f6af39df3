"""Callbacks for the Trainer, and `filter_update`, which filters what training added to weights."""
