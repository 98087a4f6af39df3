"""Networks, layers and readouts of the recipes, filtered copies, models of other libraries."""
