"""Ctrl-C, in a process of its own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from commanded_here import says

HERE = Path(__file__).parent
# A disk so slow that whoever waits for it presses Ctrl-C.
SLOW = """
import sys, time, pathlib
import safetensors.torch
real, marker = safetensors.torch.save_file, pathlib.Path(sys.argv.pop(1))

def slow(*args, **given):
    real(*args, **given)
    marker.touch()
    time.sleep(60)

safetensors.torch.save_file = slow
from remixer.cli import app
app(prog_name="remixer")
"""


def heard():
    """What a shell starts in the background ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_what_was_there_stays_whole(tmp_path):
    folder, marker = tmp_path / "small", tmp_path / "marker"
    said = says("remix", "commanded:encoder", "--mixer", "toeplitz", "--out", folder)
    assert said.code == 0, said.err
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    command = [sys.executable, "-c", SLOW, str(marker), "remix", "commanded:encoder", "--mixer", "long_short"]
    running = subprocess.Popen(
        [*command, "--out", str(folder)],
        cwd=HERE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,
    )
    try:
        while not marker.exists():
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert (running.returncode, out) == (130, "")
    assert err == "remixer remix: interrupted; nothing was left half-written\n"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
