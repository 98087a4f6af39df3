"""The layers that take the place of dense (not compressed) layers, and their base class."""
