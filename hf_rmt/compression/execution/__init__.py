"""Runs the work on processes and threads, with fixed random numbers.

Autocast and inference mode are switched off for it.
"""
