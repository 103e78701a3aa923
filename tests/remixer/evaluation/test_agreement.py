import pytest
import torch

from remixer.evaluation import EvaluationError, agreement, outputs


def test_figures_are_those_worked_out_by_hand(bigram, other, padded):
    found = agreement(other, bigram, padded, top=3)
    tokens = padded["input_ids"][padded["attention_mask"] > 0].tolist()
    mine, wanted = other.table.detach().log_softmax(-1), bigram.table.detach().log_softmax(-1)
    same = [int(mine[token].argmax() == wanted[token].argmax()) for token in tokens]
    common = [
        len({*mine[token].topk(3).indices.tolist()} & {*wanted[token].topk(3).indices.tolist()}) for token in tokens
    ]
    kl = [float((wanted[token].exp() * (wanted[token] - mine[token])).sum()) for token in tokens]
    assert found.tokens == len(tokens) == 20
    assert found.top1 == pytest.approx(sum(same) / 20)
    assert found.overlap == pytest.approx(sum(common) / 60)
    assert found.kl == pytest.approx(sum(kl) / 20, abs=1e-10)
    assert found.top1 < 1.0
    assert found.kl > 0.1


def test_a_teacher_agrees_with_itself(bigram, padded):
    found = agreement(bigram, bigram, padded)
    assert (found.top1, found.overlap, found.kl) == (1.0, 1.0, 0.0)


def test_probabilities_in_pieces_give_the_same(bigram, other, padded, monkeypatch):
    whole = agreement(other, bigram, [padded])
    monkeypatch.setattr(outputs, "_NUMBERS", 4 * 7)
    assert agreement(other, bigram, [padded]) == whole


def test_what_the_teacher_never_says_costs_nothing(bigram, padded):
    def teacher(input_ids, attention_mask):
        return bigram.table[input_ids].index_fill(-1, torch.tensor([3]), -torch.inf)

    found = agreement(bigram, teacher, padded)
    assert 0.0 < found.kl < 10.0
    assert agreement(teacher, teacher, padded).kl == 0.0


def test_divergence_is_not_symmetric(bigram, other, padded):
    assert agreement(bigram, other, padded).kl != pytest.approx(agreement(other, bigram, padded).kl, rel=1e-3)


def test_what_cannot_be_compared_is_refused(bigram, padded, successor):
    with pytest.raises(EvaluationError, match="gives 16 logits a token, its teacher 7"):
        agreement(successor(), bigram, padded)
    with pytest.raises(EvaluationError, match="from 1 to the 7 tokens"):
        agreement(bigram, bigram, padded, top=8)
    with pytest.raises(EvaluationError, match="every token is padding"):
        agreement(bigram, bigram, {**padded, "attention_mask": torch.zeros(3, 9)})
