import json
import sys
from itertools import islice

import listops
import long_range
import pytest
import standard_library
import torch
from long_range_settings import FULL, MIXERS, SMALL, build
from long_range_tasks import PACKAGES, listops_task, text_task

from remixer.testing import assert_close


def test_listops_batches_hold_the_expressions():
    task = listops_task(rows=4, tests=10, min_length=10, max_length=40)
    train = list(islice(task.train(), 3))
    assert [len(labels) for _, _, labels in train] == [4, 4, 4]
    assert [len(labels) for _, _, labels in task.test] == [4, 4, 2]
    texts = []
    for ids, padding, labels in [*train, *task.test]:
        for row, exist, label in zip(ids, padding, labels, strict=True):
            tokens = [listops.TOKENS[index] for index in row[exist].tolist()]
            texts.append(" ".join(tokens))
            assert listops.evaluate(tokens) == label
            assert 10 <= len(tokens) <= 40
            assert bool((row[~exist] == task.vocabulary - 1).all())
    assert len(set(texts)) == 22
    assert 0.1 <= task.chance <= 1.0


@pytest.mark.parametrize("name", long_range.TASKS)
def test_all_mixers_are_trained_on_the_same_batches(name):
    task = long_range.task_of(name, rows=2, tests=8, full=False)
    for first, again in islice(zip(task.train(), task.train(), strict=False), 3):
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[2], again[2])


def test_text_is_not_tested_on_files_it_was_trained_on():
    task = text_task(rows=4, tests=32, length=200)
    _, _, labels = task.test[0]
    assert sum(len(labels) for _, _, labels in task.test) == 32
    for batches, held_out in ((islice(task.train(), 5), False), (task.test, True)):
        for ids, padding, labels in batches:
            assert padding is None
            for row, label in zip(ids, labels.tolist(), strict=True):
                parts = standard_library.split(standard_library.modules(PACKAGES[label]), one_in=4)
                assert bytes(row.tolist()) in parts[held_out]


def test_no_file_is_in_both_parts():
    sources = {"a.py": b"aaaa", "b.py": b"bbb", "c.py": b"cc", "d.py": b"d"}
    assert standard_library.split(sources, one_in=2) == (b"aaaacc", b"bbbd")
    assert not any("test" in name.split("/") for name in standard_library.modules("json", "unittest"))


@pytest.mark.parametrize("settings", [SMALL, FULL], ids=["small", "full"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_no_answer(settings, mixer):
    model = build(mixer, settings[mixer, "ListOps"], 16, 10, 64).eval()
    ids = torch.randint(0, 15, (1, 40))
    padded = torch.nn.functional.pad(ids, (0, 13), value=15)
    with torch.no_grad():
        assert_close(model(padded, padded != 15), model(ids, torch.ones_like(ids, dtype=torch.bool)))


def test_settings_cover_every_mixer_and_task_with_about_the_same_size():
    pairs = {(mixer, task) for mixer in MIXERS for task in long_range.TASKS}
    assert SMALL.keys() == FULL.keys() == pairs
    sizes = [build(mixer, SMALL[mixer, "Text"], 256, 8, 1024).size() for mixer in MIXERS]
    assert max(sizes) < 1.2 * min(sizes)


def test_long_range_runs(monkeypatch, tmp_path):
    out = tmp_path / "result.json"
    options = ["--tasks", "ListOps", "--steps", "2", "--tests", "20", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["long_range.py", *options])
    long_range.main()
    result = json.loads(out.read_text())
    assert [row["mixer"] for row in result["rows"]] == list(MIXERS)
    assert all(0.0 <= row["accuracy"] <= 1.0 and row["steps_per_cpu_second"] > 0.0 for row in result["rows"])
