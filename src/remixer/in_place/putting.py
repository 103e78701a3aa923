"""`remix(..., in_place=True)`: from a rewritten graph to the model itself with the same mixers inside."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from torch import nn

from remixer.errors import AlreadyRemixedError
from remixer.in_place.errors import InPlaceError
from remixer.in_place.placing import place, undo, weights_of
from remixer.passes.sites import sites_of
from remixer.remixed import Remixed
from remixer.rewrite.elsewhere import example_at, sizes_of_example
from remixer.rewrite.program import Program

M = TypeVar("M", bound=nn.Module)


def check_takes_mixers(model: Any) -> None:
    """Raise InPlaceError unless it is a model of transformers; before any work is done."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        raise InPlaceError(
            f"in_place is for models of transformers, whose attention can be exchanged, got {type(model).__name__}. "
            "Leave it out for a graph, or give the PreTrainedModel inside of a wrapper"
        )
    if not hasattr(transformers, "AttentionMaskInterface"):
        raise InPlaceError(f"transformers {transformers.__version__} has no AttentionMaskInterface: a newer one has")


def put_inside(model: M, remixed: Remixed) -> M:
    """Put the mixers of a rewritten graph into the model that it was made from, and the weights that it has learned.

    Args:
        model: a `PreTrainedModel` of transformers; it is as it was if anything is raised.
        remixed: what `remix` made of it. The two share the mixers from then on.

    Returns:
        The model.

    Raises:
        InPlaceError: the mixers can't stand inside this model, with the reason.
        AlreadyRemixedError: there are mixers inside.
    """
    from remixer.in_place.looking import look  # these need transformers
    from remixer.in_place.proving import mapped, prove

    check_takes_mixers(model)
    graph, original = Program.of(remixed), remixed.original
    if hasattr(model, "remixed_in_place"):
        raise AlreadyRemixedError(f"there are mixers inside of {type(model).__name__}: remixer.undo takes them out")
    if original is None:
        raise InPlaceError("the graph was loaded and doesn't know the model that it was made from: remix that again")
    mixers = {site.name: site.mixer for site in sites_of(graph)}
    call = example_at(original, sizes_of_example(original))
    seen = look(model, call)
    together = mapped(model, seen, original, call, mixers, remixed.report)
    owner: Any = model.get_submodule(next(iter(mixers)))
    form = seen.forms[id(owner.config)]
    place(model, together, form, sorted(set(seen.masks)), remixed.report)
    try:
        with weights_of(remixed, model):
            prove(model, graph, mixers)
    except BaseException:  # Ctrl-C too
        undo(model)
        raise
    return model
