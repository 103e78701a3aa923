"""What can go wrong when a rewritten model writes."""


class GenerationError(ValueError):
    """A model can't write token by token, or not what it was asked for."""
