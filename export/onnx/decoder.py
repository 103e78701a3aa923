"""`OnnxDecoder`: generates with the graphs that `to_onnx_decoder` wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remixer.export.errors import ExportError
from remixer.export.onnx.manifest import DecoderManifest
from remixer.export.onnx.names import PAST, PRESENT
from remixer.export.onnx.runtime import PROVIDERS, Provider, Session
from remixer.export.typed import TypedError, parsed, read_text, typed

State = list[Any]  # onnxruntime's own values, which stay where the graph computes
Choose = Callable[[Tensor], Tensor]


class Graph:
    """One of a decoder's two graphs, for a prompt or for a token after it.

    Args:
        path: of the file.
        provider: where it runs.
        threads: how many the CPU provider uses; 0 leaves it to onnxruntime.

    Attributes:
        inputs: names of the model's inputs.
        outputs: names of its outputs.
    """

    def __init__(self, path: Path, provider: Provider = "cpu", threads: int = 0) -> None:
        self._session = Session(path, provider, threads)
        self.inputs = [name for name in self._session.inputs if not name.startswith(PAST)]
        self.outputs = [name for name in self._session.outputs if not name.startswith(PRESENT)]

    def run(self, inputs: list[Tensor], state: State | None) -> tuple[list[Tensor], State]:
        """The outputs of the last token, and the new state; the graph of a prompt takes no state."""
        values = [Session.value_of(tensor) for tensor in inputs] + (state or [])
        results = self._session.run(dict(zip(self._session.inputs, values, strict=True)))
        split = len(self.outputs)
        return [torch.from_numpy(each.numpy()) for each in results[:split]], results[split:]


class OnnxDecoder:
    """A causal language model in onnxruntime.

    Args:
        folder: that `to_onnx_decoder` wrote.
        provider: where to run; what it was exported for by default.
        threads: how many the CPU provider uses; 0 leaves it to onnxruntime.

    Raises:
        ExportError: there is no such export in the folder, or which output the logits are can't be told.
    """

    def __init__(self, folder: str | os.PathLike[str], *, provider: Provider | None = None, threads: int = 0) -> None:
        path = Path(folder)
        try:
            manifest = typed(DecoderManifest, parsed(read_text(path / "decoder.json")))
        except FileNotFoundError:
            raise ExportError(
                f"there is no decoder.json in {path}. Write one with remixer.export.to_onnx_decoder"
            ) from None
        except (OSError, TypedError) as error:
            raise ExportError(f"can't read {path / 'decoder.json'}: {error}") from error
        chosen = provider or manifest.provider
        if chosen not in PROVIDERS:
            raise ExportError(f"can't read {path / 'decoder.json'}: there is no provider {chosen!r:.40}")
        self.length = manifest.length
        self._prefill, self._step = (Graph(path / name, chosen, threads) for name in ("prefill.onnx", "step.onnx"))  # type: ignore[arg-type]
        outputs = self._step.outputs
        if not outputs or not self._prefill.inputs:
            raise ExportError(f"{path} holds no decoder: its graphs have no inputs or no outputs")
        if "logits" not in outputs and len(outputs) > 1:
            raise ExportError(f"which of the outputs {', '.join(outputs)} are logits can't be told: none has that name")
        self._logits = outputs.index("logits") if "logits" in outputs else 0
        self._ids, *others = self._prefill.inputs
        known = {"attention_mask", "mask", "position_ids"}
        if unknown := set(others) - known:
            raise ExportError(
                f"OnnxDecoder feeds token ids, masks and position ids, and this model also takes {', '.join(unknown)}: "
                "run prefill.onnx and step.onnx yourself, see decoder.json"
            )

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        mask: Tensor | None = None,
        stop: Collection[int] = (),
        choose: Choose | None = None,
    ) -> Tensor:
        """Token ids with the model's continuation, greedy unless told otherwise.

        Args:
            ids: (B, T) int64, prompts; shorter ones are padded on the left.
            max_new_tokens: how many to add at most.
            mask: (B, T), 1 where a token of a prompt exists, or None where all do.
            stop: ids that end a row; the row is then filled up with that id.
            choose: from the logits of the last token, (B, vocabulary), the next ids, (B,); the largest by default.

        Returns:
            (B, T + new) int64.

        Raises:
            ValueError: there would be more tokens than the graphs were exported for, or a row is padded on the right.
        """
        rows = [
            ids,
            *(token[:, None] for token in self.stream(ids, max_new_tokens, mask=mask, stop=stop, choose=choose)),
        ]
        return torch.cat(rows, 1)

    def stream(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        mask: Tensor | None = None,
        stop: Collection[int] = (),
        choose: Choose | None = None,
    ) -> Iterator[Tensor]:
        """`generate`, one (B,) tensor of ids after the other."""
        if ids.shape[1] + max_new_tokens > self.length:
            raise ValueError(
                f"{ids.shape[1]} tokens and {max_new_tokens} new ones are more than the {self.length} that the graphs "
                "were exported for. Export them with a greater length"
            )
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
        if not bool(mask[:, -1].all()):
            raise ValueError("pad prompts on the left: the last token of every row has to exist")
        position = mask.cumsum(1)
        ended = torch.zeros(len(ids), dtype=torch.bool)
        last = torch.zeros(len(ids), dtype=ids.dtype)
        state: State | None = None
        feeds = {"attention_mask": mask, "mask": mask, "position_ids": (position - 1).clamp(min=0)}
        for _ in range(max_new_tokens):
            given = [ids if name == self._ids else feeds[name] for name in self._prefill.inputs]
            outputs, state = (self._prefill if state is None else self._step).run(given, state)
            chosen = (choose or _largest)(outputs[self._logits][:, -1]).to(ids.dtype)
            last = torch.where(ended, last, chosen)
            yield last
            ended = ended | torch.isin(last, torch.tensor(sorted(stop), dtype=ids.dtype))
            if bool(ended.all()):
                return
            ids, position = last[:, None], position[:, -1:] + 1
            here = torch.ones_like(ids)
            feeds = {"attention_mask": here, "mask": here, "position_ids": position - 1}


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)
