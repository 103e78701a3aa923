"""The engine: capture, patterns, rules, and editing of graphs. Knows nothing of attention."""
