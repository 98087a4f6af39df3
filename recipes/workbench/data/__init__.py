"""Data of the recipes: texts, images and vectors, from files, from the Hub or built in."""
