"""What can go wrong at the front door."""

from remixer.report import Report


class NoAttentionError(ValueError):
    """There is no attention in the model that could be replaced.

    Attributes:
        report: what `remixer.explain` says of the model.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class AlreadyRemixedError(ValueError):
    """The model was rewritten before."""


class NoOriginalError(ValueError):
    """The model that a rewritten one was made from is not known, and is needed."""
