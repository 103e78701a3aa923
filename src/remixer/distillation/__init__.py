"""Rewritten models learn from the models they were made from."""
