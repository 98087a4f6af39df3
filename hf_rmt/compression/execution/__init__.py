"""Runs the work on processes and threads, with fixed random numbers and fixed torch modes."""
