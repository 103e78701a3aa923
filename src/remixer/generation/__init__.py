"""Text from rewritten decoders, token by token."""
