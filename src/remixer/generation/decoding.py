"""`Decoder`: a rewritten causal model that goes on from a state instead of reading the whole text again."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from remixer.generation.errors import GenerationError
from remixer.generation.feeds import Feeds
from remixer.passes.errors import StreamError
from remixer.passes.exact_sites import exact_sites
from remixer.passes.prove_stream import prove_stream, sequence
from remixer.passes.recognise_attention import RULES
from remixer.passes.stream import stream
from remixer.passes.streamed_site import Step
from remixer.rewrite.agreement import mode
from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.modules import device_of, flattened
from remixer.rewrite.program import Program

State = dict[str, Tensor]
CHUNK = 5  # tokens at once after the first, in the proof


class Decoder:
    """Takes a prompt at once, then goes on from what it keeps of it. Built once, with a proof that both forms agree.

    A state is a plain dict of tensors: it can be moved to a device, saved with `torch.save`, and its rows chosen by
    `reorder`. A step takes its state over and leaves the dict empty, since its memory is written to again: `fork`
    first where two texts go on from one.

    Args:
        model: what `remixer.remix` gave. Every attention of it has to be a mixer that goes token by token, or have been
            understood: one that was kept goes on from its keys and values, as by "softmax". Capture the model with the
            `attention_mask` for prompts that are padded, and with `position_ids` if it takes them: positions then count
            the tokens that exist; otherwise they count all.
        length: how many tokens there may be in all, prompt included.

    Attributes:
        length: as given.
        model: as given.

    Raises:
        GenerationError: the model can't go token by token, takes other inputs than token ids, masks and positions, or a
            fixed number of rows, has no positions for so many tokens, or which of its outputs are logits can't be told.
    """

    def __init__(self, model: fx.GraphModule, length: int) -> None:
        if not (isinstance(model, fx.GraphModule) and "program" in model.meta):
            raise GenerationError(
                f"a decoder is built from what remixer.remix gave, got {type(model).__name__}. For a model as it is, "
                'give it remix(model, "softmax", inputs), which changes no numbers'
            )
        if length < 2:
            raise GenerationError(f"length counts the tokens of prompt and answer, at least 2, got {length}")
        with _evaluated(model):
            program = _on_its_device(Program.of(model))
            if _keeps_some(model):
                program = exact_sites(program, model.meta["original"].rules if "original" in model.meta else RULES)
        self.length, self.model = length, model
        if fixed := [str(one) for one in program.static if one.dim == 0]:
            raise GenerationError(f"a decoder takes any number of rows, and here {fixed[0]}")
        with _evaluated(model):
            try:
                self._streaming = stream(program, length)
                self._feeds = Feeds.of(program, self._streaming.other)
                most = program.limits.get(self._streaming.tokens, (0, None))[1]
                if most is not None and length > most:
                    raise GenerationError(f"the model takes no more than {most} tokens, not {length}")
                prove_stream(self._streaming)
            except StreamError as error:
                raise GenerationError(str(error)) from error
            steps = [module for module in self._streaming.step.modules() if isinstance(module, Step)]
            self._several = self._proven(CHUNK)
            self._step = flattened(self._streaming.step)
            self._logits = self._which_is_logits()
            self._lasting = any(step.lasting for step in steps)
            self._made_from = self._weights()
            self._rows = self._row_dimensions()
            self._check_last_position()

    @property
    def stale(self) -> bool:
        """Whether since then weights were moved, exchanged, or changed that something was computed from."""
        return self._made_from != self._weights()

    def prefill(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        source: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """The logits of a prompt's last token, and the state after it.

        Args:
            tokens: (B, T) token ids; shorter prompts are padded on the left.
            attention_mask: (B, T), 1 or True where a token exists, or None where all do.
            source: what the model reads of another sequence, by the names that it was captured with: the inputs of an
                encoder. What is made of it is part of the state.

        Returns:
            (B, 1, vocabulary), and the state.

        Raises:
            GenerationError: the prompt is empty or too long, or padded though the model was captured without a mask;
                the model's weights or device were changed since this was built.
        """
        if self.stale:
            raise GenerationError(
                "the model's weights were changed or moved since this decoder was built: build another"
            )
        exist = self._feeds.existing(tokens, attention_mask)
        self._check_room(0, tokens.shape[1])
        self._feeds.check(len(tokens), source)
        results = self._run(self._streaming.prefill, self._feeds.tensors(tokens, exist, 0, source or {}))
        count = torch.full((1,), tokens.shape[1], device=tokens.device)
        return self._taken(results, {"tokens": count, "existing": exist.sum(1)})

    def step(self, tokens: Tensor, state: State, attention_mask: Tensor | None = None) -> tuple[Tensor, State]:
        """The logits of further tokens, and the state after them. The state given is taken over: its dict is emptied.

        Args:
            tokens: (B, T) token ids, one or more a row. A mixer that takes one at a time is given them one by one.
            state: of the tokens before.
            attention_mask: (B, T), 1 or True where a token exists, or None where all do.

        Returns:
            (B, T, vocabulary), and the new state.

        Raises:
            GenerationError: the state was taken over by another step, or is of another number of rows; there would be
                more tokens than this decoder was built for.
        """
        self._check_state(state, len(tokens))
        exist = self._feeds.existing(tokens, attention_mask)
        self._check_room(int(state["tokens"]), tokens.shape[1])
        state, taken = dict(state), state
        taken.clear()
        size = tokens.shape[1] if self._several else 1
        logits = []
        for some, there in zip(tokens.split(size, 1), exist.split(size, 1), strict=True):
            own = {"tokens": state["tokens"] + some.shape[1], "existing": state["existing"] + there.sum(1)}
            inputs = self._feeds.tensors(some, there, state["existing"])
            past = [state.pop(name) for name in self._streaming.state]
            each, state = self._taken(self._run(self._step, [*inputs, *past]), own)
            logits.append(each)
        return torch.cat(logits, 1) if len(logits) > 1 else logits[0], state

    def whole(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        source: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The logits of all tokens (B, T, vocabulary), by the model itself, as it was captured; gradients flow.

        Args:
            tokens: (B, T) token ids.
            attention_mask: (B, T), 1 or True where a token exists, or None where all do.
            source: see `prefill`.
        """
        exist = self._feeds.existing(tokens, attention_mask)
        self._feeds.check(len(tokens), source)
        given = iter(self._feeds.tensors(tokens, exist, 0, source or {}))
        program = self._streaming.program
        args, kwargs = pytree.tree_map(
            lambda leaf: next(given) if isinstance(leaf, Tensor) else leaf, (program.args, dict(program.kwargs))
        )
        return tensors_in(self.model(*args, **kwargs))[self._logits]

    @torch.inference_mode(False)
    @torch.no_grad()
    def fork(self, state: State) -> State:
        """A copy of a state, from which another text can go on."""
        self._check_state(state)
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}

    @torch.inference_mode(False)
    @torch.no_grad()
    def reorder(self, state: State, index: Tensor) -> State:
        """The chosen rows of a state, which may be more or fewer, and the same ones several times.

        Args:
            state: of B rows; it stays as it is.
            index: (rows,) int64, which row of the state each is.
        """
        self._check_state(state)
        index = index.to(state["existing"].device)
        return {
            name: tensor.clone() if (dim := self._rows[name]) is None else tensor.index_select(dim, index)
            for name, tensor in state.items()
        }

    def _run(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        # A state made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), _evaluated(self.model):
            return graph(*inputs)

    def _taken(self, results: tuple[Tensor, ...], own: State) -> tuple[Tensor, State]:
        """The logits, and the state with what the decoder counts itself."""
        split = len(results) - len(self._streaming.state)
        return results[self._logits], dict(zip(self._streaming.state, results[split:], strict=True)) | own

    def _check_state(self, state: State, rows: int | None = None) -> None:
        if not state:
            raise GenerationError("this state is empty: a step took it over. Fork it before the step to use it twice")
        if state.keys() != self._rows.keys():
            raise GenerationError("this state is not one of this decoder: its entries have other names")
        if rows is not None and len(state["existing"]) != rows:
            raise GenerationError(f"the state is of {len(state['existing'])} rows, and there are tokens for {rows}")

    def _check_room(self, before: int, more: int) -> None:
        if before + more > self.length:
            raise GenerationError(
                f"{before} tokens and {more} more are more than the {self.length} that this decoder was built for: "
                "build one with a greater length"
            )

    def _proven(self, several: int) -> bool:
        """Whether the step's graph takes so many tokens at once too."""
        try:
            prove_stream(self._streaming, then=several)
        except (StreamError, RuntimeError):
            return False
        return True

    def _which_is_logits(self) -> int:
        args, kwargs = sequence(self._streaming, 2, 2)
        with torch.no_grad():
            outputs = self._streaming.program.graph_module(*args, **kwargs)
        found = tensors_in(outputs)
        if isinstance(outputs, Mapping) and isinstance(named := outputs.get("logits"), Tensor):
            return next(i for i, each in enumerate(found) if each is named)
        if isinstance(outputs, Mapping) and len(found) > 1:
            names = ", ".join(outputs)
            raise GenerationError(f"which of the outputs {names} are logits can't be told: none has that name")
        return 0

    def _row_dimensions(self) -> dict[str, int | None]:
        """Of every entry of a state the dimension that runs over the rows, or None."""
        device = self._made_from[0]
        shapes = []
        for rows in (2, 3):
            ids = torch.zeros(rows, 2, dtype=torch.int64, device=device)
            _, state = self.prefill(ids, source=self._example_source(rows))
            shapes.append({name: tensor.shape for name, tensor in state.items()})
        found: dict[str, int | None] = {}
        for name, shape in shapes[0].items():
            found[name] = next((d for d, size in enumerate(shape) if size != shapes[1][name][d]), None)
        return found

    def _example_source(self, rows: int) -> dict[str, Tensor]:
        """What the program's example has of another sequence, of so many rows."""
        tensors = tensors_in(sequence(self._streaming, rows, 2))
        return {
            name: tensor
            for (name, role, _), tensor in zip(self._feeds.roles, tensors, strict=True)
            if role == "source"
        }  # fmt: skip

    def _check_last_position(self) -> None:
        """Whether tables of positions reach as far as the longest text."""
        one = torch.zeros(1, 1, dtype=torch.int64, device=self._made_from[0])
        _, state = self.prefill(one, source=self._example_source(1))
        last = self.length - 1
        for name in state:
            if name in ("tokens", "existing", "position") or name.startswith("sum."):
                state[name] = torch.full_like(state[name], last)
        try:
            self.step(one, state)
        except (IndexError, RuntimeError) as error:
            raise GenerationError(f"the model has no position for token {last}: {error}") from error

    def _weights(self) -> tuple[torch.device, int, list[tuple[int, torch.dtype]]]:
        """The device, which weights these are, and how often they were written to, if something was made from them."""
        weights = list(self.model.parameters())
        written = sum(weight._version for weight in weights) if self._lasting else 0
        return device_of(self.model), written, [(id(weight), weight.dtype) for weight in weights]


def _evaluated(model: fx.GraphModule) -> contextlib.AbstractContextManager[None]:
    return mode(model, training=False) if model.training else contextlib.nullcontext()


def _keeps_some(model: fx.GraphModule) -> bool:
    """Whether attentions were kept that had been understood."""
    report = model.meta.get("report")
    return report is not None and any(site.status == "kept" and site.spec is not None for site in report.sites)


def _on_its_device(program: Program) -> Program:
    """The program with its example inputs where its weights are: the model may have moved since its capture."""
    device = device_of(program.graph_module)
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (program.args, dict(program.kwargs))
    )
    return replace(program, args=args, kwargs=kwargs)
