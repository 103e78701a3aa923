import others
import pytest
import scaling
import torch


def test_the_straightforward_forms_give_our_numbers():
    others.check(256)


@pytest.mark.parametrize("name", [*others.PAIRS, *list(others.PAIRS.values())[:2]])
@pytest.mark.parametrize("backward", [False, True])
def test_all_peers_run(name, backward):
    others.call_of(name, 256, backward=backward)()


@pytest.mark.parametrize("backward", [False, True])
def test_all_forms_of_attention_are_one(backward):
    written, fused = (scaling.call_of(name, 200, backward=backward) for name in scaling.PEERS[:2])
    if backward:
        written()
        fused()
    else:
        torch.testing.assert_close(written(), fused())
