"""The decoder of a model, kept with it from one text to the next."""

from __future__ import annotations

from torch import fx

from remixer.generation.decoding import Decoder


class Kept:
    """Holds one decoder, or none. Copies and pickles of the model that it belongs to start without."""

    def __init__(self) -> None:
        self.decoder: Decoder | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


def kept_decoder(model: fx.GraphModule, length: int) -> Decoder:
    """The decoder that was last built for a model, if it takes so many tokens and nothing was changed, or a new one.

    Raises:
        GenerationError: see `Decoder`.
    """
    kept = vars(model).setdefault("_kept_decoder", Kept())
    if kept.decoder is None or kept.decoder.length < length or kept.decoder.stale:
        kept.decoder = Decoder(model, length)
    decoder: Decoder = kept.decoder
    return decoder
