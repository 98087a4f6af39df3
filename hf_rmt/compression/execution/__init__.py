"""Runs the work on the weights of a model, on several processes and threads.

Random numbers have fixed seeds, and autocast and inference mode are switched off meanwhile.
"""
