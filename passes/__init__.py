"""Transformations of a program: one pass a file, and the pipelines made of them."""
