"""What can go wrong where mixers stand inside a model of transformers."""


class InPlaceError(ValueError):
    """Mixers can't stand inside this model, or are asked for what they can't do there."""
