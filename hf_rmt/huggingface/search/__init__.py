"""Finds how much noise weights can lose while a metric stays within a tolerance (see `search`)."""
