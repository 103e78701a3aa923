"""From a rewritten model to one that several processes run together."""
