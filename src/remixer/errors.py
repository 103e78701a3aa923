"""What can go wrong at the front door."""


class NoAttentionError(ValueError):
    """There is no attention in the model that could be replaced."""


class AlreadyRemixedError(ValueError):
    """The model was rewritten before."""
