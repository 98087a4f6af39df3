"""The methods that look at the spectrum (the squared singular values) of each weight.

There is one file for each family of methods. The files import torch only when a method is called.
So the options of all methods can be listed and checked without torch.
"""
