import copy
import pickle

import torch
from viewing_pages import Odd

import remixer
from remixer.viewing.elements import elements_of, tree_of
from remixer.viewing.payload import Table
from remixer.viewing.trace import Trace

PASSES = [
    "capture",
    "SettleWrites",
    "EinsumToMatmul",
    "Canonicalise",
    "RepeatHeadsLast",
    "SinkRepetitions",
    "RecogniseAttention",
    "ClassifyMasks",
    "ProveSites",
    "Substitute",
    "Sweep",
]


def names(data, stage):
    return [data["nodes"][number][0] for number in data["stages"][stage]["nodes"]]


def value_of(data, node):
    return data["values"][next(row for row in data["nodes"] if row[0] == node)[7]]


def test_there_is_a_graph_after_every_pass(data, traced):
    assert [stage["title"] for stage in data["stages"]] == PASSES
    assert names(data, -1) == [node.name for node in traced.graph.nodes]


def test_counts_are_those_of_the_report(data, traced):
    after = {step.name: step.nodes[1] for step in traced.report.passes}
    assert {stage["title"]: len(stage["nodes"]) for stage in data["stages"]} == {name: after[name] for name in PASSES}


def test_nodes_that_no_pass_touched_are_told_once(data):
    first, last = data["stages"][0]["nodes"], data["stages"][-1]["nodes"]
    kept = set(first) & set(last)
    assert len(kept) > len(last) / 2
    assert len(data["nodes"]) < sum(len(stage["nodes"]) for stage in data["stages"]) / 4


def test_what_changed_is_what_differs(data):
    gone = set(names(data, -2)) - set(names(data, -1))
    assert "softmax" in gone
    assert "softmax_1" not in gone
    idle = next(stage for stage in data["stages"] if stage["title"] == "EinsumToMatmul")
    assert not idle["changed"]


def test_passes_tell_what_they_do_and_which_rules_they_applied(data):
    sweep = data["stages"][-1]
    assert sweep["about"].startswith("Remove dead nodes")
    substitute = data["stages"][-2]
    assert [rewrite["rule"] for rewrite in substitute["rewrites"]] == ["Substitute long_short"]
    assert [rewrite["site"] for rewrite in substitute["rewrites"]] == ["layers.0.attention"]


def test_sizes_are_polynomials_of_batch_and_length(data):
    scores = next(row for row in data["nodes"] if row[2] == "softmax")
    assert data["values"][scores[7]][:4] == ["(B, 2, T, T)", "float32", "2*B*T**2", ["*", 2, "B", ["^", "T", 2]]]
    assert data["values"][scores[7]][5] == "n^2"
    assert scores[12:] == ["n^2", 2]
    assert value_of(data, "x")[:3] == ["(B, T, 16)", "float32", "16*B*T"]
    assert data["letters"] == ["B", "T"]


def test_a_sum_of_shapes_is_one_polynomial():
    assert elements_of([torch.zeros(2, 3), torch.zeros(4)], {}).text == "10"


def test_an_operator_that_few_know_has_no_tree():
    import sympy

    T = sympy.Symbol("T", integer=True, positive=True)
    assert tree_of(sympy.sqrt(T), {T: "T"}) is None
    assert tree_of(sympy.Mod(T, 4) + sympy.Max(T, 3), {T: "T"}) is not None
    assert tree_of(T, {}) is None


def test_nodes_know_module_source_and_code(data):
    softmax = next(row for row in data["nodes"] if row[2] == "softmax")
    assert data["paths"][softmax[6]] == "layers.0.attention"
    place, code = data["sources"][softmax[8]]
    assert place.startswith("conftest.py:")
    assert code.startswith("weights = (q @ k.transpose(-2, -1)")


def test_sites_stand_at_their_nodes(data):
    mixers = [row for row in data["nodes"] if row[9] == "layers.0.attention"]
    assert {row[2] for row in mixers} == {"softmax", "long_short"}
    assert all(row[11] in names(data, 0) for row in mixers)
    (replaced, kept) = data["report"]["sites"]
    assert (replaced["status"], replaced["mixer"]) == ("replaced", "long_short")
    assert kept["status"] == "kept"


def test_without_a_trace_the_attentions_are_shown_as_they_were(small, x):
    from remixer.viewing.tracing import story_of

    story = story_of(remixer.remix(small, "long_short", x), None)
    before, after = story.trace.stages
    assert sum(node.label == "softmax" for node in before.nodes) == 2
    assert sum(node.label == "long_short" for node in after.nodes) == 2
    assert not any(node.label == "softmax" for node in after.nodes)
    assert any("trace=True" in note for note in story.notes)


def test_a_plain_model_is_shown_with_what_was_not_understood(x):
    from remixer.viewing.tracing import story_of

    story = story_of(Odd(), {"x": x})
    assert story.report is not None
    (site,) = story.report.sites
    assert site.status == "missed"
    (miss,) = [miss for stage in story.trace.stages for miss in stage.misses if miss.reason in site.reason]
    assert (miss.node, miss.site) == ("softmax", "attention")


def test_nothing_is_kept_unless_asked(small, x):
    assert "trace" not in remixer.remix(small, "toeplitz", x).meta


def test_copies_share_the_trace_and_pickles_hold_it(traced):
    assert copy.deepcopy(traced).meta["trace"] is traced.meta["trace"]
    back = pickle.loads(pickle.dumps(traced)).meta["trace"]
    assert back.stages == traced.meta["trace"].stages


def test_a_trace_takes_a_single_pass(small, x):
    from remixer.passes.sweep import Sweep

    trace = Trace()
    program = remixer.capture(small, x)
    trace.start(program)
    trace.add(Sweep()(program))
    assert [stage.title for stage in trace.stages] == ["capture", "Sweep"]


def test_a_table_numbers_rows_once():
    table = Table()
    assert [table.number(row) for row in ("a", "b", "a")] == [0, 1, 0]
