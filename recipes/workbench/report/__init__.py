"""What is shown: rows of methods, tables, figures, and how far the differences can be trusted."""
