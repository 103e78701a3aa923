"""From what MODEL stands for to a rewritten model, or a sentence that says why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remixer.commands.answering import NothingReplacedError
from remixer.commands.chosen import mapping_of
from remixer.commands.example_inputs import inputs_for
from remixer.commands.models import Found, ModelError
from remixer.commands.progress import doing

if TYPE_CHECKING:
    from remixer.mixers import MixerConfig
    from remixer.planning.plan import Plan
    from remixer.remixed import Remixed
    from remixer.rewrite.inputs import Inputs


def rewritten(found: Found, choice: Mapping[str, MixerConfig | None] | Plan, inputs: Inputs, **options: Any) -> Remixed:
    """What `remix` makes of a model, if it replaced anything that was asked for.

    Raises:
        NothingReplacedError: it did not.
    """
    import remixer

    if found.remixed is not None:
        raise ModelError(f"{found.name} is rewritten already: rewrite the model that it was made from")
    with doing("capturing and rewriting"):
        result = remixer.remix(found.model, choice, inputs, **options)
    sites = result.report.sites
    if _asks(choice) and not any(site.status == "replaced" for site in sites):
        first = next((f"; the first, {site.name}: {site.reason}" for site in sites if site.reason), "")
        raise NothingReplacedError(
            f"none of the {len(sites)} attentions of {found.name} could be replaced{first}",
            {"report": result.report.to_dict()},
        )
    return result


def saved_or_rewritten(
    found: Found,
    asked: list[str] | None,
    otherwise: Literal["softmax", "distributed"],
    file: Path | None = None,
    batch: int | None = None,
    length: int | None = None,
) -> Remixed:
    """An artifact as it is, or a model with mixers, by default one that changes no numbers.

    Raises:
        typer.BadParameter: mixers are asked for an artifact, which has its own.
        NothingReplacedError: the mixers fit nowhere.
    """
    found.refuse_if_remixed(asked, file, batch, length)
    if found.remixed is not None:
        return found.remixed
    return rewritten(found, mapping_of(asked or [otherwise]), inputs_for(found, file, batch, length))


def _asks(choice: Mapping[str, MixerConfig | None] | Plan) -> bool:
    entries = (
        choice
        if isinstance(choice, Mapping)
        else {name: config for site in choice.sites for name, config in site.entries.items()}
    )
    return any(config is not None for config in entries.values())
