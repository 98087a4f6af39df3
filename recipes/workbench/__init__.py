"""Code that the recipes share, in four packages: `models`, `data`, `report` and `training`.

`python recipes/NAME.py` puts `recipes/` on the path, so a recipe can import from here: `from
workbench.data.rows import ...`. Nothing in this package runs on its own. The modules outside the
four packages contain what every recipe needs: its start and end, its settings, its processes and
its files.
"""
