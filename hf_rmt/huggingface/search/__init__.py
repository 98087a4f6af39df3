"""The search for the most noise that can be removed while a metric stays within a tolerance."""
