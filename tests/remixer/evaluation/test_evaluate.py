import json
import sys

import pytest
import torch

from remixer.evaluation import (
    EvaluationError,
    agreement,
    embeddings,
    evaluate,
    figure,
    generation,
    needle,
    perplexity,
)

CUE, VOCABULARY = [1, 2], (3, 16)


def pool(output, exists):
    return output[:, -1]


@pytest.fixture
def models(successor):
    return {"original": successor(), "wrong": successor(wrong=4), "same": successor()}


@pytest.fixture
def asked():
    texts = torch.arange(40).expand(2, -1) % 16
    return {
        "windows": texts,
        "buckets": 8,
        "prompts": texts[:, :3],
        "tokens": 5,
        "items": torch.arange(12)[:, None],
        "pool": pool,
        "neighbours": 3,
        "distances": [12, (14, 20)],
        "cue": CUE,
        "vocabulary": VOCABULARY,
        "inputs_at": lambda length: torch.zeros(1, length, dtype=torch.long),
        "lengths": [4, 8],
        "runs": 1,
        "tasks": {"accuracy": lambda model: 0.75},
        "seed": 3,
    }


def test_everything_is_what_each_measurement_gives_alone(models, asked):
    found = evaluate(models, **asked)
    assert list(found.models) == ["original", "wrong", "same"]
    original, wrong, same = found.models.values()
    teacher, model, texts = models["original"], models["wrong"], asked["windows"]
    assert wrong.perplexity == perplexity(model, texts, teacher, buckets=8)
    assert wrong.agreement == agreement(model, teacher, texts)
    assert wrong.generation == generation(model, teacher, asked["prompts"], 5)
    assert wrong.embeddings == embeddings(model, teacher, asked["items"], pool=pool, neighbours=3)
    assert wrong.needles == needle(model, texts, asked["distances"], cue=CUE, vocabulary=VOCABULARY, seed=3)
    assert [each.length for each in wrong.costs] == [4, 8]
    assert wrong.tasks == (("accuracy", 0.75),)
    assert (original.perplexity.ratio, original.agreement, original.generation) == (1.0, None, None)
    assert (same.perplexity.ratio, same.agreement.top1, same.generation.prefix) == (1.0, 1.0, 5.0)
    assert wrong.perplexity.ratio > 1.1
    assert wrong.agreement.top1 < 1.0
    assert not found.only_perplexity


def test_the_same_seed_gives_the_same(asked):
    del asked["inputs_at"], asked["lengths"], asked["pool"]
    models = {"original": torch.nn.Embedding(16, 16), "other": torch.nn.Embedding(16, 16)}
    first = evaluate(models, **asked)
    torch.rand(5)
    assert evaluate(models, **asked) == first
    assert evaluate(models, **asked | {"seed": 4}).models["other"].needles != first.models["other"].needles


def test_one_table_says_it_all(models, asked):
    text = str(evaluate(models, **asked))
    assert "\x1b" not in text
    for words in (
        "original", "wrong", "perplexity", "ratio", "after 8 to 15 tokens", "next token the same", "of the top 5",
        "KL divergence", "written tokens the same", "the same at first, of 5", "lowest cosine", "overlap@3",
        "secret 12 back", "secret 14 to 19 back", "another one planted", "gain", "accuracy", "0.75", "seconds, 4",
        "MiB at most, 8",        "Ratios, agreement and cosines are to original",
    ):  # fmt: skip
        assert words in text, words
    assert "hides damage" not in text


def test_perplexity_by_itself_comes_with_a_warning(models, asked):
    found = evaluate(models, windows=asked["windows"])
    assert found.only_perplexity
    assert "Perplexity hides damage" in str(found)
    assert "overlap" not in str(found)


def test_json_holds_everything(models, asked):
    found = evaluate(models, **asked)
    plain = json.loads(found.to_json())
    wrong = plain["models"]["wrong"]
    assert wrong["perplexity"]["ratio"] == found.models["wrong"].perplexity.ratio
    assert wrong["needles"][0]["planted"]["top1"] == found.models["wrong"].needles[0].planted.top1
    assert wrong["tasks"] == {"accuracy": 0.75}
    assert plain["models"]["original"]["agreement"] is None
    assert (plain["seed"], plain["versions"]["torch"]) == (3, torch.__version__)


def test_one_figure_has_a_panel_for_each_curve(models, asked, tmp_path, monkeypatch):
    from matplotlib.colors import to_hex

    drawn, colours = [], set()
    for panel, has in list(figure.PANELS.items()):

        def noted(axes, models, panel=panel):
            drawn.append(panel.__name__)
            panel(axes, models)
            colours.update(
                (line.get_label(), to_hex(line.get_color())) for line in axes.get_lines() if line.get_marker() == "o"
            )

        monkeypatch.delitem(figure.PANELS, panel)
        monkeypatch.setitem(figure.PANELS, noted, has)
    path = evaluate(models, **asked).plot(tmp_path / "figure.png")
    assert path.stat().st_size > 10_000
    assert len(colours) == 3  # one for each model, in all panels
    assert drawn[:4] == ["_perplexity", "_needles", "_generation", "_seconds"]
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    drawn.clear()
    evaluate(models, windows=asked["windows"]).plot(str(tmp_path / "figure.png"))
    assert drawn == ["_perplexity"]


def test_figures_that_cannot_be_drawn_are_refused(models, asked, tmp_path, monkeypatch):
    only = evaluate(models, tasks=asked["tasks"])
    with pytest.raises(EvaluationError, match="there is no curve to draw"):
        only.plot(tmp_path / "figure.png")
    found = evaluate(models, windows=asked["windows"])
    for path in (tmp_path / "nowhere" / "figure.png", tmp_path / "figure"):
        with pytest.raises(EvaluationError, match="in a folder that exists"):
            found.plot(path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EvaluationError, match="need matplotlib"):
        found.plot(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


class Untouched:
    """A model that nobody may run."""

    def __call__(self, *args, **kwargs):
        raise AssertionError("it ran before the inputs were looked at")


@pytest.mark.parametrize(("given", "message"), [
    ({}, "nothing is asked for"),
    ({"windows": torch.zeros(1, 1).long()}, "nothing to predict"),
    ({"windows": torch.zeros(1, 64).long(), "distances": [20]}, "need windows to plant it in, a cue"),
    ({"distances": [20], "cue": [1], "vocabulary": (1, 9)}, "need windows"),
    ({"windows": torch.zeros(1, 64).long(), "distances": [99], "cue": [1], "vocabulary": (1, 9)}, "not 99"),
    ({"inputs_at": lambda length: torch.zeros(length)}, "belong together"),
    ({"windows": torch.zeros(1, 64).long(), "lengths": [0], "inputs_at": torch.zeros}, "lengths must be"),
    ({"items": torch.zeros(5, 3)}, "of 5 items"),
    ({"windows": torch.zeros(1, 9).long(), "items": torch.zeros(15, 3), "pool": "last"}, "pool must be"),
    ({"windows": torch.zeros(1, 9).long(), "prompts": torch.zeros(1, 9).long(), "tokens": 0}, "1 token or more"),
    ({"windows": torch.zeros(1, 9).long(), "buckets": []}, "ascending limits"),
    ({"windows": torch.zeros(1, 9).long(), "prompts": []}, "is empty"),
])  # fmt: skip
def test_bad_arguments_are_refused_before_any_model_runs(given, message):
    with pytest.raises(EvaluationError, match=message):
        evaluate({"original": Untouched()}, **given)


def test_no_models_are_refused():
    with pytest.raises(EvaluationError, match="no models"):
        evaluate({}, windows=torch.zeros(1, 9).long())
