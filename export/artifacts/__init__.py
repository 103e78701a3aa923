"""Rewritten models as files that any process can read, and that can't do anything but be read."""
