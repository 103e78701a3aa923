"""Real processes that share a process group, kept for many tests: starting them takes seconds."""

import contextlib
import io
import multiprocessing
import os
import traceback
from datetime import timedelta

import torch


class Processes:
    """So many processes with a gloo group.

    Args:
        size: how many.
        folder: for the file by which they find each other.
    """

    def __init__(self, size, folder, timeout=60):
        context = multiprocessing.get_context("spawn")
        self.size, self.pipes, self.running = size, [], []
        self.patience = max(120, timeout)
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(rank, size, str(folder / "meeting"), timeout, theirs), daemon=True
            )
            process.start()
            self.pipes.append(mine)
            self.running.append(process)

    def __call__(self, function, *args):
        """What a function of a module gives in each process; an error of any is raised here."""
        self.start(function, *args)
        answers = [self.answer(rank) for rank in range(self.size)]
        for rank, (fine, answer) in enumerate(answers):
            if not fine:
                raise AssertionError(f"in process {rank} of {self.size}:\n{answer}")
        return [answer for _, answer in answers]

    def start(self, function, *args):
        """Let each process begin."""
        for pipe in self.pipes:
            pipe.send_bytes(_packed((function.__module__, function.__name__, args)))

    def answer(self, rank):
        """Whether a process could do it, and what it gave."""
        if not self.pipes[rank].poll(self.patience):
            raise TimeoutError(f"process {rank} of {self.size} does not answer")
        return _unpacked(self.pipes[rank].recv_bytes())

    def close(self):
        """End them."""
        for pipe in self.pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(_packed(None))
        for process in self.running:
            process.join(5)
            if process.is_alive():
                process.kill()


def _packed(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(data):
    return torch.load(io.BytesIO(data), weights_only=False)


def _work(rank, size, meeting, timeout, pipe):
    import importlib

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=timeout)
    )
    while (task := _unpacked(pipe.recv_bytes())) is not None:
        module, name, args = task
        try:
            answer = True, getattr(importlib.import_module(module), name)(*args)
        except Exception:  # whatever it is, it is the parent's to raise
            answer = False, traceback.format_exc()
        pipe.send_bytes(_packed(answer))
    torch.distributed.destroy_process_group()
