"""The methods that look at a spectrum, one family a file.

The files import torch only when a method is called, so that the options of all methods can be
listed and checked without it.
"""
