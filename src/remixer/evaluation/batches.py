"""What models are evaluated on: inputs of one call, which of them are the tokens, and which tokens exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from remixer.evaluation.errors import EvaluationError
from remixer.rewrite.errors import CaptureError
from remixer.rewrite.inputs import Inputs, as_call

Place = str | int  # of an input: its name, or its position


@dataclass(frozen=True)
class Batch:
    """Inputs of one call, where it isn't plain which of them are the tokens and which tell what exists.

    Plain inputs need no Batch: in a dict, tokens are "input_ids" or else the only (B, T) tensor of whole numbers, and
    those exist that "attention_mask" has ones for, or a "...key_padding_mask", as torch has it, has False for.

    Args:
        inputs: a dict by name, a tuple, or one tensor.
        tokens: name or position of the token ids (B, T); None if there are none.
        padding: name or position of the mask (B, T) that is not 0 where a token exists; None if all do.

    Examples:
        >>> ids = torch.tensor([[5, 3, 0]])
        >>> Batch((ids, ids > 0), tokens=0, padding=1).exists(3)
        tensor([[ True,  True, False]])
    """

    inputs: Inputs
    tokens: Place | None = None
    padding: Place | None = None

    def __post_init__(self) -> None:
        known = self.by_place
        for place in (self.tokens, self.padding):
            if place is not None and place not in known:
                raise EvaluationError(f"there is no input {place!r}: there are {', '.join(map(repr, known))}")
        if self.padding is None:
            return
        mask = known[self.padding]
        if mask.dim() != 2:
            raise EvaluationError(
                f"the padding {self.padding!r} must be (B, T), one number for each token, got {tuple(mask.shape)}. "
                "If it says something else, say evaluation.Batch(inputs, tokens=..., padding=None)"
            )
        if not self.inverted and (mask < 0).any():
            raise EvaluationError(
                f"the padding {self.padding!r} holds negative numbers: it must be 0 where no token is"
            )

    @classmethod
    def of(cls, inputs: Inputs | Batch) -> Batch:
        """Inputs, with tokens and padding where they plainly are.

        Raises:
            EvaluationError: a mask can't be told from the other inputs.
        """
        if isinstance(inputs, Batch):
            return inputs
        if isinstance(inputs, list):
            raise EvaluationError(
                "one call's inputs are a dict by name, a tuple or one tensor; a list is of several calls"
            )
        known = cls(inputs).by_place
        masks = [place for place in known if place == "attention_mask" or str(place).endswith("key_padding_mask")]
        whole = [place for place, value in known.items() if value.dim() == 2 and not value.is_floating_point()]
        ids = [place for place in whole if known[place].dtype != torch.bool and place not in masks]
        unclear = [place for place in whole if place not in masks + ids or (isinstance(place, int) and place != ids[0])]
        if unclear or len(masks) > 1:
            raise EvaluationError(
                f"whether input {(unclear or masks)[-1]!r} tells which tokens exist is not plain: name it "
                "attention_mask (1: exists), or say evaluation.Batch(inputs, tokens=..., padding=...)"
            )
        tokens = "input_ids" if "input_ids" in ids else ids[0] if len(ids) == 1 else None
        return cls(inputs, tokens, masks[0] if masks else None)

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the call."""
        return _as_call(self.inputs)[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """Arguments of the call by name."""
        return _as_call(self.inputs)[1]

    @property
    def by_place(self) -> dict[Place, Tensor]:
        """The inputs that are tensors."""
        args, kwargs = _as_call(self.inputs)
        places: list[tuple[Place, Any]] = [*enumerate(args), *kwargs.items()]
        return {place: value for place, value in places if isinstance(value, Tensor)}

    @property
    def ids(self) -> Tensor:
        """Token ids (B, T).

        Raises:
            EvaluationError: no input is plainly that.
        """
        known = self.by_place
        if self.tokens is None:
            raise EvaluationError(
                f"which of the inputs {', '.join(map(repr, known))} are the token ids (B, T) is not plain: name them "
                "input_ids, or say evaluation.Batch(inputs, tokens=...)"
            )
        ids = known[self.tokens]
        if ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise EvaluationError(
                f"token ids are whole numbers (B, T); {self.tokens!r} is {ids.dtype} {tuple(ids.shape)}"
            )
        if self.padding is not None and known[self.padding].shape != ids.shape:
            shapes = f"{tuple(known[self.padding].shape)} for ids {tuple(ids.shape)}"
            raise EvaluationError(f"the padding {self.padding!r} must have the shape of the token ids, got {shapes}")
        return ids

    @property
    def inverted(self) -> bool:
        """Whether the padding has True for what does not exist."""
        return str(self.padding).endswith("key_padding_mask")

    def exists(self, length: int) -> Tensor:
        """Which of `length` tokens exist, (B, T) or (1, T), on the CPU."""
        if self.padding is None:
            return torch.ones(1, length, dtype=torch.bool)
        mask = self.by_place[self.padding]
        if mask.shape[1] != length:
            raise EvaluationError(
                f"the padding {self.padding!r} is of {mask.shape[1]} tokens, the model gives {length}"
            )
        return (mask == 0 if self.inverted else mask != 0).cpu()

    def rows(self) -> list[Batch]:
        """A batch for each row. What has a first dimension of 1 goes into all of them.

        Raises:
            EvaluationError: there is no row, or tensors have different numbers of them.
        """
        sizes = {place: len(value) for place, value in self.by_place.items() if value.dim()}
        many = max(sizes.values(), default=0)
        if 0 in sizes.values() or not many:
            raise EvaluationError("there is nothing to evaluate on: the inputs have no row")
        odd = {place: size for place, size in sizes.items() if size not in (1, many)}
        if odd:
            raise EvaluationError(f"the inputs have different numbers of rows: {sizes}. Put each call into a list")

        def row(value: Any, index: int) -> Any:
            cut = isinstance(value, Tensor) and value.dim() and len(value) == many
            return value[index : index + 1] if cut else value

        return [
            self._with(pytree.tree_map(lambda value, index=index: row(value, index), _as_call(self.inputs)))
            for index in range(many)
        ]

    def text(self) -> Tensor:
        """The tokens (T,) of a batch of one row that exist."""
        ids = self.ids
        return ids[0][self.exists(ids.shape[1])[0].to(ids.device)]

    def with_text(self, text: Tensor) -> Batch:
        """The same call for other tokens (T,), all of which exist.

        Raises:
            EvaluationError: there are other inputs, which nobody can say what they would be then.
        """
        other = self.by_place.keys() - {self.tokens, self.padding}
        if other:
            raise EvaluationError(
                f"texts can be changed only where token ids and padding are all there is; there is also "
                f"{min(map(str, other))}"
            )
        args, kwargs = list(self.args), dict(self.kwargs)
        new = {self.tokens: text[None]}
        if self.padding is not None:
            mask = self.by_place[self.padding]
            new[self.padding] = torch.full_like(mask[:1, :1], not self.inverted).expand(1, len(text))
        for place, value in new.items():
            if isinstance(place, int):
                args[place] = value
            elif place is not None:
                kwargs[place] = value
        return self._with((tuple(args), kwargs))

    def _with(self, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Batch:
        return Batch(call, self.tokens, self.padding)


Windows = Inputs | Batch | list[Any]


def batches_of(windows: Windows) -> list[Batch]:
    """What each call is given: the items of a list as they are, and one row at a time of anything else.

    Raises:
        EvaluationError: there is nothing, or it isn't inputs.
    """
    if isinstance(windows, list):
        if not windows:
            raise EvaluationError("there is nothing to evaluate on: the list of inputs is empty")
        return [Batch.of(one) for one in windows]
    return Batch.of(windows).rows()


def rows_of(windows: Windows) -> list[Batch]:
    """Every row by itself.

    Raises:
        EvaluationError: there is nothing, or it isn't inputs.
    """
    return [row for batch in batches_of(windows) for row in batch.rows()]


def _as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        return as_call(inputs)
    except CaptureError as error:
        raise EvaluationError(str(error)) from error
