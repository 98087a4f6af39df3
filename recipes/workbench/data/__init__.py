"""Data for training and evaluation: rows, images and vectors, from files, the Hub or built in."""
