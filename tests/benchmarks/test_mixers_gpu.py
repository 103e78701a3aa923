import json
import sys

import mixers_gpu
import pytest
import torch


def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch, tmp_path):
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["mixers_gpu.py", "--out", str(out)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU, and torch finds none: nothing was measured") as stopped:
        mixers_gpu.main()
    assert stopped.value.code == mixers_gpu.NO_GPU  # which the interpreter prints, and exits with 1
    assert not out.exists()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["attention", "toeplitz", "long_short"])
def test_peers_run_forward_and_backward(name, causal):
    calls = mixers_gpu.calls_of(name, causal, 300, 1, "cpu")
    assert calls["forward"]().shape == (1, mixers_gpu.HEADS, 300, mixers_gpu.HEAD_DIM)
    calls["forward and backward"]()


def test_it_writes_a_row_for_each_peer_pass_and_direction(monkeypatch, tmp_path):
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["mixers_gpu.py", "--lengths", "256", "--runs", "1", "--out", str(out)])
    for name, stub in {"is_available": lambda: True, "get_device_name": lambda: "none"}.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    nothing = {"forward": lambda: None, "forward and backward": lambda: None}
    monkeypatch.setattr(mixers_gpu, "calls_of", lambda *case: nothing)
    monkeypatch.setattr(mixers_gpu, "peak_bytes", lambda call: 2**20)
    monkeypatch.setattr(mixers_gpu, "seconds", lambda call: 1e-3)
    mixers_gpu.main()
    result = json.loads(out.read_text())
    assert len(result["rows"]) == len(mixers_gpu.PEERS) * 2 * 2
    assert {row["ratio"] for row in result["rows"]} == {1.0}
    assert result["machine"]["gpu"] == "none"
