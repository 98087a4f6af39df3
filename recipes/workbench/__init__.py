"""What the recipes share: data, training, methods side by side, tables and figures of results.

A recipe runs as `python recipes/NAME.py`, which puts `recipes/` on the path, and imports from here:
`from workbench.common import ...`. Nothing in here runs on its own.
"""
