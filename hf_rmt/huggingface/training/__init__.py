"""Callbacks for the Trainer; `filter_update` removes noise from what training added to weights."""
