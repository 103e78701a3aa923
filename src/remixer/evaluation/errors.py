"""What can go wrong when models are evaluated."""


class EvaluationError(ValueError):
    """What was asked for can't be measured: the inputs don't fit, or the model doesn't give what it needs."""
