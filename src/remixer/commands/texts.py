"""What texts for a model look like: its inputs, how long they may be, and who reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remixer.commands.models import Found, ModelError

if TYPE_CHECKING:
    from torch import fx

    from remixer.rewrite.inputs import Inputs
    from remixer.rewrite.program import Program


def names_of(model: fx.GraphModule) -> list[str]:
    """The inputs of a rewritten model, in their order."""
    return [str(node.target) for node in model.graph.find_nodes(op="placeholder")]


def room_for(model: fx.GraphModule, length: int) -> int:
    """So many tokens, or as many as the model takes."""
    from remixer.rewrite.program import Program

    program = Program.of(model)
    limits = [program.limits.get(symbol, (0, None))[1] for symbol in program.length]
    return min([length, *(most for most in limits if most is not None)])


def tokenizer_for(found: Found, folder: str | None) -> Any:
    """The tokenizer of a folder or id, if one is given, or else the model's own.

    Raises:
        ModelError: there is none in the folder.
    """
    if folder is None:
        return found.tokenizer
    from remixer.commands.huggingface import tokenizer_of

    tokenizer = tokenizer_of(folder)
    if tokenizer is None:
        raise ModelError(f"transformers finds no tokenizer in {folder}")
    return tokenizer


def as_captured(batches: list[dict[str, Any]], program: Program) -> list[Inputs]:
    """Batches by name as the calls that a program was captured with: by place where its inputs were."""
    many = len(program.args)
    if not many:
        return list(batches)
    return [(tuple(batch.values())[:many], dict(list(batch.items())[many:])) for batch in batches]
