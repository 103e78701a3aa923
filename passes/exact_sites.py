"""The attentions that a rewritten program kept, as sites of the exact mixer."""

from __future__ import annotations

from dataclasses import replace

from remixer.passes.pipelines import recognition
from remixer.passes.recognise_attention import RULES
from remixer.passes.sites import sites_of, unique_name
from remixer.passes.sweep import Sweep
from remixer.rewrite.program import Program
from remixer.rewrite.rule import Rule


def exact_sites(program: Program, rules: tuple[Rule, ...] = RULES) -> Program:
    """A program whose kept attentions are softmax mixers where they can be understood; those replaced stay.

    Args:
        program: rewritten; it stays as it is, and shares its weights.
        rules: what recognises attention.
    """
    changed = program.copy()
    replaced = {site.node.name: site.node.meta.pop("site") for site in sites_of(changed)}
    found = recognition(rules)(changed).program
    if not sites_of(found):
        return program
    taken = {record.name for record in replaced.values()}
    for node in found.graph.nodes:
        if node.name in replaced:
            node.meta["site"] = replaced[node.name]
        elif "site" in node.meta:
            name = unique_name(node.meta["site"].name, taken)
            node.meta["site"] = replace(node.meta["site"], name=name)
            taken.add(name)
    return Sweep()(found).program
