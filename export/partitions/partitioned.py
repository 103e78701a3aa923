"""A partitioned model on one of the processes that share it."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from remixer.export.errors import PartitionError
from remixer.export.partitions.agreement import agree, same_everywhere
from remixer.export.partitions.pipeline import Pipeline
from remixer.export.partitions.places import Place
from remixer.export.partitions.plan import MESH_DIM, PartitionPlan
from remixer.export.partitions.survivors import missing
from remixer.rewrite.agreement import first_line
from remixer.rewrite.inputs import tensors_in
from remixer.rewrite.modules import device_of


class Partitioned(nn.Module):
    """Called like the model it was made of, by all processes, each with the same whole inputs.

    It trains: where all processes compute the same loss and all go backward, gradients averaged over those that have
    the same weights are those of one process. `average_gradients` does that, and so does DistributedDataParallel over
    the mesh's dimension "sequence".

    Args:
        module: the graph of this process.
        plan: how the model is spread.
        place: of this process.
        pipeline: that its stage belongs to, if there are several.
    """

    def __init__(self, module: fx.GraphModule, plan: PartitionPlan, place: Place, pipeline: Pipeline | None) -> None:
        super().__init__()
        self.module, self.plan, self.place = module, plan, place
        self._pipeline, self._calls = pipeline, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives.

        Raises:
            PartitionError: processes were given inputs of different shapes; or one of them is gone, or hangs; or the
                batch can't be cut into as many microbatches as were asked for.
        """
        given = tensors_in((args, kwargs))
        with self.watched():
            self._agree([(tuple(each.shape), str(each.dtype), each.requires_grad) for each in given])
            if self._pipeline is None:
                return self.module(*args, **kwargs)
            return self._through(self._pipeline, args, kwargs)

    def average_gradients(self) -> None:
        """Average the gradients over the processes that have the same weights. Collective, after each backward pass."""
        group = self.place.along.get(MESH_DIM)
        for weight in self.parameters() if group is not None else ():
            if weight.grad is not None:
                dist.all_reduce(weight.grad, group=group)
                weight.grad /= dist.get_world_size(group)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """What all processes do together: if it fails, the error says which of them is gone.

        Raises:
            PartitionError: one is, or hangs.
        """
        self._calls += 1
        try:
            yield
        except PartitionError:
            raise
        except RuntimeError as error:
            rank = self.place.everyone.rank
            gone = missing(self.place.everyone, self._calls, self.place.timeout)
            if not gone:
                raise
            who = ", ".join(map(str, gone))
            raise PartitionError(
                f"process {rank} can't go on: process {who} is gone or hangs ({first_line(error)})"
            ) from error

    def _through(self, pipeline: Pipeline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Through all stages."""
        call = inspect.signature(self.module.forward).bind((), *args, **kwargs).arguments
        leaves, structure = pytree.tree_flatten({name: call[name] for name in list(call)[1:]})
        pipeline.microbatches(leaves)  # raises what can't be cut
        if not torch.is_grad_enabled():
            return pipeline.run(leaves, structure)
        outputs: list[Any] = []
        start = torch.zeros((), requires_grad=True)  # so that all processes go backward, also where nothing is trained
        tensors = _Pipelined.apply(self, leaves, structure, outputs, start, *tensors_in(leaves), *self.parameters())
        found = iter(tensors)
        return pytree.tree_map(lambda each: next(found) if isinstance(each, Tensor) else each, outputs[0])

    def _agree(self, shapes: list[Any]) -> None:
        """Different shapes would abort a process from within: they are compared before."""
        mine = int.from_bytes(hashlib.sha256(repr(shapes).encode()).digest()[:7], "big")
        device = device_of(self.module)
        if not same_everywhere(self.place.everyone, mine, device):
            agree(self.place.everyone, {"shapes": shapes}, "run the partitioned model")


class _Pipelined(torch.autograd.Function):
    """All stages as one function of the inputs and of this stage's weights; see `pipeline`."""

    @staticmethod
    def forward(
        ctx: Any,
        model: Partitioned,
        leaves: list[Any],
        structure: pytree.TreeSpec,
        outputs: list[Any],
        start: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        assert model._pipeline is not None
        ctx.model, ctx.leaves, ctx.structure = model, leaves, structure
        ctx.save_for_backward(*tensors)
        outputs.append(model._pipeline.run(leaves, structure))
        found = tensors_in(outputs)
        ctx.mark_non_differentiable(*(each for each in found if not each.is_floating_point()))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        pipeline = ctx.model._pipeline
        count = len(tensors_in(ctx.leaves))
        saved = iter(ctx.saved_tensors[:count])
        leaves = [next(saved) if isinstance(each, Tensor) else each for each in ctx.leaves]
        with ctx.model.watched():
            inputs, weights = pipeline.gradients(leaves, ctx.structure, ctx.saved_tensors[count:], gradients)
        of_inputs = [found for leaf, found in zip(leaves, inputs, strict=True) if isinstance(leaf, Tensor)]
        return None, None, None, None, None, *of_inputs, *weights
