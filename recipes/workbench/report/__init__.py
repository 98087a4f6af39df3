"""Results of the recipes: rows of methods, tables, figures, and intervals of the differences."""
