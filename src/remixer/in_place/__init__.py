"""Mixers inside a model of transformers, through its own attention interface."""
