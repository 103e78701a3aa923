"""What can go wrong when mixers are chosen."""


class PlanError(ValueError):
    """There is no plan as it was asked for, or it can't be read."""
