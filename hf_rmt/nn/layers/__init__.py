"""The layers: a base class, and the kinds of layers that take the place of dense ones."""
