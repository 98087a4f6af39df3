"""The methods that look at a spectrum, one file for each family.

The files import torch only when a method is called. So the options of all methods can be listed
and checked without torch.
"""
