"""What can go wrong when a program is rewritten."""


class PreconditionError(ValueError):
    """A pass was given a program that it can't work on."""


class SelectionError(LookupError):
    """A pattern of site names selects nothing."""


class UnsupportedAttentionError(ValueError):
    """An attention that was chosen can't take the mixer that was asked for."""


class StreamError(ValueError):
    """A program can't go token by token."""


class ShardError(ValueError):
    """A program can't be spread over processes."""


class ExtendError(ValueError):
    """A program can't take inputs as long as was asked."""


class StageError(ValueError):
    """A program can't be split into pipeline stages."""
