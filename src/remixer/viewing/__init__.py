"""A model's graph as one page to look at: before and after, and after each pass in between."""
