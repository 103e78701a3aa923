"""What can go wrong when a rewritten model learns from its original."""


class TransferError(ValueError):
    """A rewritten model can't learn from its original as it was asked to."""
