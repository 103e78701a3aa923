"""What can go wrong when a page is written."""


class ViewError(ValueError):
    """The page can't be written, or there is nothing to show."""
