"""What the recipes share, in four rooms: `models`, `data`, `report` and `training`.

A recipe runs as `python recipes/NAME.py`, which puts `recipes/` on the path, and imports from here:
`from workbench.data.rows import ...`. Nothing in here runs on its own. Beside the rooms stands what
every recipe needs: how it starts and ends, its settings, its processes, its files.
"""
