import pytest
import torch

from remixer.evaluation import EvaluationError, needle
from remixer.evaluation.planted import samples_of

CUE = [1, 2]
ASK = {"cue": CUE, "vocabulary": (100, 2000)}


def windows(rows=3, length=64):
    return torch.randint(3, 50, (rows, length))


def test_a_model_that_sees_the_secret_repeats_it_and_one_that_does_not_cannot(copier):
    near, far = needle(copier(2000, reach=30), windows(), [20, 40], **ASK)
    assert (near.planted.top1, near.baseline.top1) == (1.0, 0.0)
    assert near.planted.first > -0.01
    assert near.planted.rest > -0.01
    assert near.gain > 7.0
    assert far.planted.top1 == 0.0
    assert far.gain == pytest.approx(0.0, abs=1e-6)


def test_log_probabilities_are_those_worked_out_by_hand(copier):
    (found,) = needle(lambda ids: torch.arange(8.0).expand(*ids.shape, 8), torch.zeros(1, 40).long(), [20],
                      cue=[1], vocabulary=(2, 8), secret=3)  # fmt: skip
    (sample,) = samples_of(torch.zeros(1, 40).long(), [20], cue=[1], vocabulary=(2, 8), secret=3, baseline=True, seed=0)
    chances = torch.arange(8.0).log_softmax(-1)[sample.planted[0].ids[0, -3:]].tolist()
    assert found.planted.first == pytest.approx(chances[0], abs=1e-6)
    assert found.planted.rest == pytest.approx(sum(chances[1:]) / 2, abs=1e-6)
    assert (found.gain, found.error) == (0.0, None)


@pytest.mark.parametrize(("distance", "length"), [(10, 64), (54, 64), (20, 33), ((12, 30), 64)])
def test_a_secret_stands_where_it_was_asked_to(distance, length):
    texts = windows(4, length)
    (samples,) = samples_of(texts, [distance], **ASK, secret=8, baseline=True, seed=5)
    for text, planted, other in zip(texts, samples.planted, samples.others, strict=True):
        ids, without = planted.ids[0], other.ids[0]
        assert len(ids) == len(without) == length
        (start, asked) = (index for index in range(length - 9) if ids[index : index + 2].tolist() == CUE)
        low, high = samples.distance
        assert low <= asked - start < high
        assert asked == length - 10
        assert torch.equal(ids[start : start + 10], ids[-10:])
        assert not torch.equal(without[start : start + 10], without[-10:])
        assert torch.equal(without[-8:], ids[-8:])
        rest = torch.cat([ids[:start], ids[start + 10 : asked]])
        assert torch.equal(rest, text[: length - 20])


def test_the_same_secrets_are_asked_of_all_models_at_all_distances():
    def secrets(seed, distances):
        return [
            [batch.ids[0, -8:].tolist() for batch in samples.planted]
            for samples in samples_of(torch.zeros(2, 64).long(), distances, **ASK, secret=8, baseline=False, seed=seed)
        ]

    near, far = secrets(0, [20, 40])
    assert near == far == secrets(0, [30])[0]
    assert near != secrets(1, [20])[0]


def test_padded_texts_are_asked_without_their_padding(copier):
    ids, mask = windows(2), torch.ones(2, 64, dtype=torch.long)
    mask[0, :20], mask[1, 50:] = 0, 0
    model = copier(2000, reach=60)
    (found,) = needle(lambda input_ids, attention_mask: model(input_ids), {"input_ids": ids, "attention_mask": mask},
                      [25], **ASK)  # fmt: skip
    assert found.planted.top1 == 1.0


def test_the_baseline_can_be_left_out(copier):
    (found,) = needle(copier(2000, reach=60), windows(), [20], **ASK, baseline=False)
    assert (found.planted.top1, found.baseline, found.gain) == (1.0, None, None)


@pytest.mark.parametrize(("changed", "message"), [
    ({"distances": [9]}, "at distances from 10 to 54, not 9"),
    ({"distances": [20, 55]}, "not 55"),
    ({"distances": [(20, 90)]}, "not 20 to 89"),
    ({"distances": [(30, 30)]}, "low < high"),
    ({"distances": []}, "no distances"),
    ({"windows": torch.zeros(2, 19).long()}, "windows must have 20 tokens or more"),
    ({"windows": torch.zeros(0, 64).long()}, "no row"),
    ({"cue": []}, "the cue must be one or more token ids"),
    ({"secret": 1}, "2 tokens or more"),
    ({"vocabulary": (5, 5)}, "low < high"),
    ({"vocabulary": (5000, 6000)}, "token ids go up to"),
])  # fmt: skip
def test_what_cannot_be_planted_is_refused(successor, changed, message):
    given = {"windows": windows(), "distances": [20], **ASK} | changed
    with pytest.raises(EvaluationError, match=message):
        needle(successor(50), **given)
