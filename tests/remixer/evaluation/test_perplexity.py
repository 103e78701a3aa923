import itertools
import math
import statistics

import pytest
import torch
from torch import nn

from remixer.evaluation import Batch, EvaluationError, outputs, perplexity


def by_hand(model, text):
    """The loss of each token but the first."""
    probabilities = model.table.detach().softmax(-1)
    return [-math.log(probabilities[before, after]) for before, after in itertools.pairwise(text)]


def texts_of(padded):
    return [ids[mask > 0].tolist() for ids, mask in zip(padded["input_ids"], padded["attention_mask"], strict=True)]


def test_losses_are_those_worked_out_by_hand_and_padding_does_not_count(bigram, padded):
    found = perplexity(bigram, padded)
    losses = [statistics.fmean(by_hand(bigram, text)) for text in texts_of(padded)]
    assert found.losses == pytest.approx(losses, abs=1e-10)
    assert found.tokens == 8 + 4 + 5
    assert found.perplexity == pytest.approx(math.exp(statistics.fmean(losses)), abs=1e-10)
    assert (found.ratio, found.error) == (None, None)


def test_padding_that_is_not_told_is_seen(bigram, padded):
    whole = perplexity(bigram, padded["input_ids"])
    assert whole.tokens == 24
    assert whole.losses[1] != pytest.approx(perplexity(bigram, padded).losses[1], abs=1e-6)


def test_the_ratio_to_a_teacher_is_paired(bigram, other, padded):
    found = perplexity(other, padded, teacher=bigram)
    harms = [
        statistics.fmean(by_hand(other, text)) - statistics.fmean(by_hand(bigram, text)) for text in texts_of(padded)
    ]
    assert found.ratio == pytest.approx(math.exp(statistics.fmean(harms)), abs=1e-10)
    assert found.error == pytest.approx(statistics.stdev(harms) / math.sqrt(3), abs=1e-10)
    assert abs(found.ratio - 1.0) > 0.01
    assert perplexity(other, padded, teacher=perplexity(bigram, padded)) == found


def test_a_teacher_is_as_good_as_itself(bigram, padded):
    found = perplexity(bigram, padded, teacher=bigram, buckets=2)
    assert (found.ratio, found.error) == (1.0, 0.0)
    assert {bucket.ratio for bucket in found.buckets} == {1.0}


def test_buckets_go_by_the_tokens_that_exist_before(bigram, other, padded):
    found = perplexity(other, padded, teacher=bigram, buckets=2)
    assert [(bucket.start, bucket.stop, bucket.tokens) for bucket in found.buckets] == [
        (0, 2, 3), (2, 4, 6), (4, 8, 4 + 1 + 2), (8, 16, 1),
    ]  # fmt: skip
    texts = texts_of(padded)
    last = found.buckets[2]
    assert last.losses == pytest.approx([statistics.fmean(by_hand(other, text)[3:7]) for text in texts], abs=1e-10)
    harms = [statistics.fmean(by_hand(other, t)[3:7]) - statistics.fmean(by_hand(bigram, t)[3:7]) for t in texts]
    assert last.ratio == pytest.approx(math.exp(statistics.fmean(harms)), abs=1e-10)
    assert found.buckets[3].losses[1:] == (None, None)
    assert found.buckets[3].error is None


def test_limits_of_buckets_can_be_given(bigram, padded):
    found = perplexity(bigram, padded, buckets=[3, 5])
    assert [(bucket.start, bucket.stop, bucket.tokens) for bucket in found.buckets] == [(3, 5, 2 + 2 + 2)]


def test_a_pass_over_many_windows_gives_what_single_ones_give(bigram, padded):
    assert perplexity(bigram, [padded]).losses == perplexity(bigram, padded).losses


def test_probabilities_in_pieces_give_the_same(bigram, padded, monkeypatch):
    whole = perplexity(bigram, [padded])
    monkeypatch.setattr(outputs, "_NUMBERS", 3 * 7)
    assert perplexity(bigram, [padded]) == whole


def test_bf16_logits_are_read_in_float32(bigram, padded):
    found = perplexity(lambda input_ids, attention_mask: bigram.table[input_ids].bfloat16(), padded)
    assert found.perplexity == pytest.approx(perplexity(bigram, padded).perplexity, rel=1e-2)


def test_a_model_in_training_mode_is_evaluated_in_eval_and_left_as_it_was(padded):
    model = nn.Sequential(nn.Embedding(7, 7), nn.Dropout(0.5)).train()
    ids = padded["input_ids"]
    assert perplexity(model, ids) == perplexity(model, ids)
    assert model[1].training


@pytest.mark.parametrize("wrap", [
    lambda logits: logits,
    lambda logits: (logits, None),
    lambda logits: {"loss": None, "logits": logits},
    lambda logits: type("Output", (), {"logits": logits})(),
])  # fmt: skip
def test_logits_come_in_many_forms(bigram, padded, wrap):
    found = perplexity(lambda input_ids, attention_mask: wrap(bigram.table[input_ids]), padded)
    assert found == perplexity(bigram, padded)


@pytest.mark.parametrize(("output", "message"), [
    ({"last_hidden_state": torch.zeros(1, 9, 7)}, "gives no logits: it gave a dict of last_hidden_state"),
    ("text", "it gave str"),
    (torch.zeros(1, 9), r"must give logits \(B, T, V\) for token ids \(1, 9\)"),
    (torch.zeros(1, 8, 7), "one row for each token"),
    (torch.zeros(1, 9, 3), "gives 3 numbers a token, but token ids go up to 6"),
    (torch.full((1, 9, 7), torch.nan), "not finite at token 0 of row 0"),
])  # fmt: skip
def test_models_that_give_no_logits_are_refused(output, message):
    with pytest.raises(EvaluationError, match=message):
        perplexity(lambda ids: output, torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1]]))


def test_nan_of_padded_tokens_does_no_harm(bigram, padded):
    def model(input_ids, attention_mask):
        return bigram.table[input_ids].masked_fill(attention_mask[..., None] == 0, torch.nan)

    assert perplexity(model, padded) == perplexity(bigram, padded)


@pytest.mark.parametrize(("windows", "message"), [
    (torch.zeros(0, 5, dtype=torch.long), "have no row"),
    ([], "the list of inputs is empty"),
    (torch.zeros(2, 1, dtype=torch.long), "nothing to predict"),
    (torch.zeros(2, 5), "are the token ids"),
    ("text", "inputs must be a dict"),
    ({"input_ids": torch.zeros(2, 5).long(), "attention_mask": torch.ones(2, 4)}, "must have the shape"),
    ({"input_ids": torch.zeros(2, 5).long(), "attention_mask": torch.ones(3, 5)}, "numbers of rows"),
    ({"input_ids": torch.zeros(2, 5).long(), "attention_mask": torch.tensor([[0, 1, 0, 1, 0]])}, "nothing to predict"),
    ({"input_ids": torch.zeros(2, 5).long(), "attention_mask": -torch.ones(2, 5)}, "negative numbers"),
    ({"input_ids": torch.zeros(2, 5).long(), "attention_mask": torch.ones(2, 1, 5, 5)}, r"must be \(B, T\), one"),
    ({"ids": torch.zeros(2, 5).long()}, "don't fit Bigram.forward"),
    ({"input_ids": torch.zeros(2, 5).long(), "padding": torch.ones(2, 5).bool()}, "'padding' tells which tokens exist"),
    ((torch.zeros(2, 5).long(), torch.ones(2, 5).long()), "input 1 tells which tokens exist is not plain"),
])  # fmt: skip
def test_inputs_that_make_no_windows_are_refused(bigram, windows, message):
    with pytest.raises(EvaluationError, match=message):
        perplexity(bigram, windows)


@pytest.mark.parametrize("buckets", [0, -1, [4], [4, 4], [-1, 4]])
def test_wrong_buckets_are_refused(bigram, padded, buckets):
    with pytest.raises(EvaluationError, match="ascending limits"):
        perplexity(bigram, padded, buckets=buckets)


def test_a_teacher_measured_on_other_windows_or_buckets_is_refused(bigram, padded):
    with pytest.raises(EvaluationError, match="on 24 tokens of 3 windows, the model on 17 of 3: give both the same"):
        perplexity(bigram, padded, teacher=perplexity(bigram, padded["input_ids"]))
    with pytest.raises(EvaluationError, match=r"in the buckets .*: give both the same"):
        perplexity(bigram, padded, teacher=perplexity(bigram, padded), buckets=2)


def test_where_tokens_and_padding_stand_can_be_said(bigram, padded):
    ids, exists = padded["input_ids"], padded["attention_mask"].bool()
    assert perplexity(bigram, Batch((ids, exists), tokens=0, padding=1)) == perplexity(bigram, padded)
    by_name = {"text": ids, "src_key_padding_mask": ~exists}
    found = perplexity(lambda text, src_key_padding_mask: bigram.table[text], by_name)
    assert found == perplexity(bigram, padded)
    with pytest.raises(EvaluationError, match="there is no input 'mask': there are 0, 1"):
        Batch((ids, exists), tokens=0, padding="mask")
