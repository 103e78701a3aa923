"""What can go wrong between a model and its graph."""


class CaptureError(ValueError):
    """The model and the inputs don't give a graph; the message says why and what to try."""


class PatternError(ValueError):
    """A rule's pattern is not one that could match."""


class PassError(RuntimeError):
    """A pass broke its promise: what it returned is not a valid program for the same inputs and outputs."""
