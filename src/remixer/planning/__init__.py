"""Which attention gets which mixer, by measured harm."""
