"""What transformers 4 computes otherwise: (family, form) -> the attentions that it has there, by its own code.

Its graphs are right then, and so is what remixer says of them.
"""

from typing import Any

import transformers
from decoders import causal
from family import SCALED_QUERY, Expected, Family, layers, sliding, together, unreadable
from vision import windows

IS_OLDER = int(transformers.__version__.split(".")[0]) < 5


def scalar(config: Any, layer: int) -> float:
    """The scale of Gemma's attentions."""
    return float(config.query_pre_attn_scalar**-0.5)


OLDER: dict[tuple[str, str], Expected] = {
    # The query is scaled, not the scores.
    ("distilbert", "eager"): layers(padding=True, scale=SCALED_QUERY),
    ("chinese-clip vision", "eager"): layers(scale=SCALED_QUERY),
    ("owlvit vision", "eager"): layers(scale=SCALED_QUERY),
    ("owlvit text", "eager"): layers(causal=True, padding=True, scale=SCALED_QUERY),
    # The scores are scaled, not the query.
    ("wavlm", "eager"): layers(bias="dense"),
    # Every other one splits its scores by windows for their mask.
    ("swin", "eager"): together(lambda config: windows(config)[::2], unreadable("reshaped", count="num_layers")),
    # Keys to come are hidden by -1e4, those that don't exist by the lowest number: a query in front of a row's first
    # token sees what comes.
    ("ctrl", "eager"): layers(bias="dense"),
    # Options that this form leaves out.
    ("gpt2 scaled by layer", "sdpa"): causal(),
    ("gemma2", "sdpa"): causal(window=sliding, scale=scalar),
    ("vaultgemma", "sdpa"): causal(window=sliding, scale=scalar),
    # The values of two heads side by side, in one call; fewer key than value heads are read as as many.
    ("diffllama", "sdpa"): layers(causal=True, padding=True, kv_heads=4, value_dim=32),
    ("diffllama", "eager"): layers(causal=True, padding=True, kv_heads=4, value_dim=32),
}


def expected_of(family: Family, form: str) -> Expected:
    """The attentions of a family in a form, in this version of transformers."""
    return OLDER.get((family.name, form), family.attentions) if IS_OLDER else family.attentions
