"""The search for the most noise to remove from weights while a metric stays within a tolerance."""
