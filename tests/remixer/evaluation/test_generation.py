import pytest
import torch
from torch import nn

from remixer.evaluation import EvaluationError, continued, generation

PROMPTS = {
    "input_ids": torch.tensor([[9, 1, 2, 0], [0, 0, 5, 6], [8, 0, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 0]]),
}


def test_prompts_are_continued_where_they_end(successor):
    assert continued(successor(), PROMPTS, 4).tolist() == [[3, 4, 5, 6], [7, 8, 9, 10], [9, 10, 11, 12]]


def test_steps_and_prefixes_are_those_worked_out_by_hand(successor):
    found = generation(successor(wrong=5), successor(), PROMPTS, 4)  # goes wrong after 5: the 4th token of the first
    assert (found.prompts, found.tokens) == (3, 4)
    assert found.steps == pytest.approx((1.0, 1.0, 1.0, 2 / 3))
    assert found.agreement == pytest.approx(11 / 12)
    assert found.prefix == pytest.approx((3 + 4 + 4) / 3)


def test_the_teacher_leads_on_after_a_wrong_token(successor):
    found = generation(successor(wrong=7), successor(), PROMPTS, 4)  # wrong at the 2nd of the second prompt
    assert found.steps == pytest.approx((1.0, 2 / 3, 1.0, 1.0))
    assert found.prefix == pytest.approx((4 + 1 + 4) / 3)


def test_the_prefix_is_how_far_the_model_alone_writes_the_same(successor):
    teacher, model = successor(), successor(wrong=8)
    alone = continued(model, PROMPTS, 4) == continued(teacher, PROMPTS, 4)
    assert generation(model, teacher, PROMPTS, 4).prefix == float(alone.long().cumprod(1).sum(1).double().mean())


def test_a_teacher_writes_what_it_writes():
    class Means(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

        def forward(self, ids):
            return self.head(self.embedding(ids).cumsum(1))

    teacher, prompts = Means(), torch.randint(0, 11, (2, 5))
    found = generation(teacher, teacher, prompts, 6)
    assert (found.agreement, found.prefix) == (1.0, 6.0)
    assert generation(Means(), teacher, prompts, 6).agreement < 1.0


def test_continuations_can_be_given(successor):
    known = continued(successor(), PROMPTS, 3)
    assert generation(successor(), None, PROMPTS, continuations=known).prefix == 3.0
    assert generation(successor(), None, PROMPTS, continuations=known + 1).steps == (0.0, 1.0, 1.0)


def test_what_cannot_be_continued_is_refused(successor):
    model = successor()
    with pytest.raises(EvaluationError, match="1 token or more"):
        generation(model, model, PROMPTS, 0)
    with pytest.raises(EvaluationError, match="give a teacher"):
        generation(model, None, PROMPTS)
    with pytest.raises(EvaluationError, match="no token that exists"):
        generation(model, model, {**PROMPTS, "attention_mask": torch.zeros(3, 4)})
    with pytest.raises(EvaluationError, match="there is also token_type_ids"):
        generation(model, model, {**PROMPTS, "token_type_ids": torch.zeros(3, 4).long()})
    with pytest.raises(EvaluationError, match="3 prompts need as many continuations"):
        generation(model, None, PROMPTS, continuations=torch.zeros(2, 4).long())
