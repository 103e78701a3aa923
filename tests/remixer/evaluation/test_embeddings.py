import pytest
import torch
from torch import nn

from remixer.evaluation import Batch, EvaluationError, embeddings


class Table(nn.Module):
    def __init__(self, noise=0.0, width=6):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(50, width, generator=generator)
        self.weight += noise * torch.randn(50, width, generator=generator)

    def forward(self, input_ids, attention_mask=None):
        return {"last_hidden_state": self.weight[input_ids]}


@pytest.fixture
def items():
    mask = torch.ones(12, 5, dtype=torch.long)
    mask[1::3, 3:], mask[2::3, :2] = 0, 0
    return {"input_ids": torch.randint(0, 50, (12, 5)), "attention_mask": mask}


def pooled_by_hand(model, items, first=False):
    rows = zip(items["input_ids"], items["attention_mask"], strict=True)
    states = [model.weight[ids[mask > 0]] for ids, mask in rows]
    return torch.stack([each[0] if first else each.mean(0) for each in states])


def neighbours_by_hand(points, many):
    found = []
    for index, point in enumerate(points):
        others = [other for other in range(len(points)) if other != index]
        cosines = {other: float(torch.cosine_similarity(point, points[other], dim=0)) for other in others}
        found.append(set(sorted(others, key=lambda other: -cosines[other])[:many]))
    return found


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_figures_are_those_worked_out_by_hand(items, pool):
    model, teacher = Table(noise=0.7), Table()
    found = embeddings(model, teacher, items, pool=pool, neighbours=4)
    mine, wanted = (pooled_by_hand(each, items, pool == "first") for each in (model, teacher))
    cosines = torch.cosine_similarity(mine, wanted)
    assert found.items == 12
    assert found.cosine == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert found.lowest == pytest.approx(float(cosines.min()), abs=1e-6)
    pairs = zip(neighbours_by_hand(mine, 4), neighbours_by_hand(wanted, 4), strict=True)
    assert found.overlap == pytest.approx(sum(len(one & other) for one, other in pairs) / 48)
    assert found.overlap < 1.0
    assert found.lowest < 0.95


def test_a_teacher_has_its_own_neighbours(items):
    found = embeddings(Table(), Table(), items)
    assert (found.neighbours, found.overlap) == (10, 1.0)
    assert found.cosine == pytest.approx(1.0, abs=1e-6)
    assert found.lowest == pytest.approx(1.0, abs=1e-6)


def test_ignoring_the_padding_would_be_seen(items):
    aware = embeddings(Table(0.7), Table(), items, neighbours=4)
    whole = embeddings(Table(0.7), Table(), items["input_ids"], neighbours=4)
    assert aware.cosine != pytest.approx(whole.cosine, abs=1e-4)


def test_nan_of_padded_tokens_does_no_harm(items):
    class Holes(Table):
        def forward(self, input_ids, attention_mask):
            return self.weight[input_ids].masked_fill(attention_mask[..., None] == 0, torch.nan)

    assert embeddings(Holes(), Table(), items).overlap == 1.0


def test_a_function_pools_what_the_model_gives(items):
    def last(output, exists):
        states = output["last_hidden_state"]
        return states[torch.arange(len(states)), exists.shape[1] - 1 - exists.flip(1).long().argmax(1)]

    found = embeddings(Table(0.7), Table(), items, pool=last, neighbours=3)
    assert found.cosine != pytest.approx(embeddings(Table(0.7), Table(), items, neighbours=3).cosine, abs=1e-4)


def test_what_is_pooled_already_is_taken_as_it_is():
    images = torch.randn(15, 3, 4)
    found = embeddings(nn.Flatten(), nn.Flatten(), images)
    assert (found.items, found.overlap) == (15, 1.0)


def test_lists_are_of_calls(items):
    calls = [{name: value[rows] for name, value in items.items()} for rows in (slice(0, 5), slice(5, 12))]
    whole = embeddings(Table(0.7), Table(), items)
    assert embeddings(Table(0.7), Table(), calls) == whole


def test_what_has_no_embeddings_is_refused(items):
    model = Table()
    with pytest.raises(EvaluationError, match="of 12 items each has 11 neighbours at most, not 12"):
        embeddings(model, model, items, neighbours=12)
    with pytest.raises(EvaluationError, match='pool must be "mean", "first" or a function'):
        embeddings(model, model, items, pool="last")
    with pytest.raises(EvaluationError, match="gives no last_hidden_state: it gave a dict of states"):
        embeddings(lambda **_: {"states": 1}, model, items)
    with pytest.raises(EvaluationError, match="no token that exists"):
        embeddings(model, model, {**items, "attention_mask": torch.zeros(12, 5)})
    with pytest.raises(EvaluationError, match=r"embeddings are \(12, 4\), the teacher's \(12, 6\)"):
        embeddings(Table(width=4), model, items)
    with pytest.raises(EvaluationError, match="not finite"):
        embeddings(lambda **inputs: torch.full((1, 5, 6), torch.nan), model, items)
    with pytest.raises(EvaluationError, match=r"pool must give embeddings \(B, C\)"):
        embeddings(model, model, items, pool=lambda output, exists: output["last_hidden_state"])
    with pytest.raises(EvaluationError, match="is of 5 tokens, the model gives 4"):
        embeddings(lambda **inputs: torch.ones(1, 4, 6), model, items)
    with pytest.raises(EvaluationError, match="is not plain"):
        embeddings(model, model, (items["input_ids"], items["attention_mask"]))
    told = Batch((items["input_ids"], items["attention_mask"]), padding=1)
    assert embeddings(model, model, told) == embeddings(model, model, items)
