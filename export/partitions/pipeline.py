"""One stage of a partitioned model at work, through torch.distributed.pipelining.

Gradients come by running the stages once more: the forward pass keeps nothing but the inputs, and the backward pass is
a whole step of a schedule, whose loss is the product of the outputs with the gradients that they were given. So memory
is that of the microbatches under way, and any loss of the whole outputs is exact, whatever the microbatches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from remixer.export.errors import PartitionError
from remixer.export.partitions.places import Place
from remixer.export.partitions.plan import STAGES, PartitionPlan
from remixer.export.partitions.shapes import letters_in, like
from remixer.rewrite.modules import device_of


class Pipeline:
    """The stage of this process, tied to the others.

    Args:
        module: of the stage.
        plan: of the model.
        place: of this process.
        microbatches: how many a batch is cut into; None for as many as there are stages, where they divide it.

    Raises:
        PartitionError: the rows of this model can't be computed apart.
    """

    def __init__(self, module: fx.GraphModule, plan: PartitionPlan, place: Place, microbatches: int | None) -> None:
        self.module, self.plan, self.index, self.wanted = module, plan, place.stage, microbatches
        self.group = place.along[STAGES]
        self.last = self.index == len(plan.stages) - 1
        self._names = [name for name, _ in module.named_parameters()]
        self._tied = self._shared()

    def _shared(self) -> list[tuple[str, list[int]]]:
        """The weights that other stages have too, and the stages that have them, in an order common to all."""
        own = {tied: name for name, tied in self.plan.stages[self.index].tied.items() if name in self._names}
        return [
            (own[tied], [number for number, stage in enumerate(self.plan.stages) if tied in stage.tied.values()])
            for tied in sorted(own)
        ]

    def microbatches(self, leaves: Sequence[Any]) -> int:
        """How many the batch of these inputs is cut into.

        Raises:
            PartitionError: the batch can't be cut into as many as were asked for.
        """
        rows = {leaf.shape[0] for name, leaf in zip(self.plan.inputs, leaves, strict=True) if name in self.plan.rows}
        wanted = self.wanted
        if wanted is None:
            wanted = len(self.plan.stages)
            return wanted if len(rows) == 1 and min(rows) and not min(rows) % wanted else 1
        if wanted > 1 and (len(rows) != 1 or min(rows) % wanted):
            told = f"{min(rows)} rows" if len(rows) == 1 else "rows that can't be computed apart"
            raise PartitionError(f"cannot cut a batch of {told} into microbatches={wanted} of equal size")
        return wanted

    def run(self, leaves: Sequence[Any], structure: pytree.TreeSpec) -> Any:
        """What the model gives, on the processes of every stage."""
        with torch.no_grad():
            chunks = _Chunks(self, dict(self.module.named_parameters()), self._calls(leaves, structure), None)
            self._step(chunks, backward=False)
            outputs = _joined(chunks.outputs) if self.last else None
            return self._broadcast(outputs)

    def gradients(
        self, leaves: Sequence[Any], structure: pytree.TreeSpec, weights: Sequence[Tensor], given: Sequence[Any]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Of the inputs and of this stage's weights.

        Args:
            leaves: the inputs.
            structure: theirs.
            weights: of this stage, in the module's order.
            given: the gradients of the outputs; those of the last stage count.
        """
        with torch.enable_grad():
            twins = {
                name: weight.detach().requires_grad_(weight.requires_grad)
                for name, weight in zip(self._names, weights, strict=True)
            }
            inputs = [_twin(leaf) for leaf in leaves]
            chunks = _Chunks(self, twins, self._calls(inputs, structure), given if self.last else None)
            self._step(chunks, backward=True)
        for name, stages in self._tied:
            twins[name].grad = self._sum(twins[name], stages)
        everywhere = list(range(len(self.plan.stages)))
        of_inputs = [
            self._sum(leaf, everywhere) if isinstance(leaf, Tensor) and leaf.requires_grad else None for leaf in inputs
        ]
        return of_inputs, [twins[name].grad for name in self._names]

    def _calls(self, leaves: Sequence[Any], structure: pytree.TreeSpec) -> list[dict[str, Any]]:
        """The inputs of each microbatch, by name."""
        number = self.microbatches(leaves)
        cut = [
            leaf.chunk(number) if number > 1 and name in self.plan.rows else [leaf] * number
            for name, leaf in zip(self.plan.inputs, leaves, strict=True)
        ]
        return [pytree.tree_unflatten(list(each), structure) for each in zip(*cut, strict=True)]

    def _step(self, chunks: _Chunks, *, backward: bool) -> None:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        stages = self.plan.stages
        letters = letters_in(self.plan, pytree.tree_leaves(chunks.calls[0]))
        received = [like(self.plan, each, letters) for each in stages[self.index].receives]
        sent = [torch.empty(1, device="meta")]
        if not self.last:
            sent = [like(self.plan, each, letters) for each in stages[self.index + 1].receives]
        chunks.shapes = [tuple(each.shape) for each in sent]
        for each in (*received, *sent):
            each.requires_grad_(backward)
        number, device = len(chunks.calls), chunks.device
        # Made anew for every call: with shapes given, no forward pass is run to find them out.
        sizes = {"input_args": tuple(received), "output_args": tuple(sent)}
        stage = PipelineStage(chunks, self.index, len(stages), device, **sizes, group=self.group)  # type: ignore[arg-type]
        kind = Schedule1F1B if backward and number >= len(stages) else ScheduleGPipe
        schedule = kind(stage, number, loss_fn=_loss if backward else None, scale_grads=False)
        each = torch.arange(number)
        if backward:
            schedule.step(chunk=each, target=each, return_outputs=False)
        else:
            schedule.step(chunk=each, return_outputs=False)

    def _sum(self, tensor: Tensor, stages: list[int]) -> Tensor:
        """The sum of a tensor's gradients over some stages, on each of them."""
        own = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.contiguous()
        found = {stage: own if stage == self.index else torch.empty_like(own) for stage in stages}
        ranks = dist.get_process_group_ranks(self.group)
        others = [stage for stage in stages if stage != self.index]
        both = [dist.P2POp(dist.isend, own, ranks[stage], self.group) for stage in others]
        both += [dist.P2POp(dist.irecv, found[stage], ranks[stage], self.group) for stage in others]
        for work in dist.batch_isend_irecv(both) if both else ():
            work.wait()
        return torch.stack([found[stage] for stage in stages]).sum(0)  # in one order, to the bit the same on all

    def _broadcast(self, outputs: Any) -> Any:
        """What the last stage has, on all."""
        source = dist.get_process_group_ranks(self.group)[-1]
        told = [pytree.tree_map(_described, outputs)]
        dist.broadcast_object_list(told, source, self.group)
        leaves, structure = pytree.tree_flatten(told[0], is_leaf=lambda each: isinstance(each, _Described))
        device = device_of(self.module)
        own = pytree.tree_leaves(outputs) if self.last else leaves
        for index, each in enumerate(leaves):
            if isinstance(each, _Described):
                whole = (
                    own[index].contiguous() if self.last else torch.empty(each.size, dtype=each.dtype, device=device)
                )
                plain = whole.view(torch.uint8) if whole.dtype is torch.bool else whole
                dist.broadcast(plain, source, self.group)
                own[index] = whole
        return pytree.tree_unflatten(own, structure)


class _Chunks(nn.Module):
    """What torch.distributed.pipelining runs of a stage: microbatch after microbatch, told by its number.

    Args:
        pipeline: whose stage it is.
        weights: to run it with, by name.
        calls: the inputs of each microbatch.
        gradients: of the outputs, on the last stage of a step that goes backward.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        weights: Mapping[str, Tensor],
        calls: list[dict[str, Any]],
        gradients: Sequence[Any] | None,
    ) -> None:
        super().__init__()
        self.stage, self.last, self.weights, self.calls = (pipeline.module,), pipeline.last, dict(weights), calls
        self.device = next((each.device for each in weights.values()), torch.device("cpu"))
        self.gradients = gradients
        self.shapes: list[tuple[int, ...]] = []
        self.outputs: list[Any] = []

    def forward(self, *received: Tensor, chunk: Tensor) -> Any:
        """One microbatch of this stage: what it sends, or a loss."""
        number = int(chunk)
        if received and torch.is_grad_enabled():
            received = _Received.apply(*received)
        given = {"received": received, **self.calls[number]}
        found = functional_call(self.stage[0], self.weights, (), given)
        if not self.last:
            return self._sent(found)
        if self.gradients is None:
            self.outputs.append(found)
            return torch.zeros(1, device=self.device)
        return self._product(pytree.tree_leaves(found), number)

    def _sent(self, found: Sequence[Tensor]) -> tuple[Tensor, ...]:
        shapes = [tuple(each.shape) for each in found]
        if shapes != self.shapes:
            raise PartitionError(f"a stage was to send tensors of the shapes {self.shapes}, and made {shapes}")
        if not torch.is_grad_enabled():
            return tuple(found)
        return tuple(each if each.requires_grad else each.detach().requires_grad_() for each in found)

    def _product(self, outputs: list[Any], number: int) -> Tensor:
        """A loss whose gradients in the outputs are those that were given."""
        assert self.gradients is not None
        total = torch.zeros(1, device=self.device, requires_grad=True)
        for output, gradient in zip(outputs, self.gradients, strict=True):
            if isinstance(output, Tensor) and output.requires_grad and gradient is not None:
                own = gradient.chunk(len(self.calls))[number] if len(self.calls) > 1 else gradient
                total = total + (output * own).sum().to(total.dtype)
        return total


class _Received(torch.autograd.Function):
    """What came in, as it is: each gets a gradient, of zeros if nothing comes of it."""

    @staticmethod
    def forward(ctx: Any, *received: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.view_as(each) for each in received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients


class _Described(NamedTuple):
    """A tensor that lies without gaps, by its shape and dtype."""

    size: tuple[int, ...]
    dtype: torch.dtype


def _described(leaf: Any) -> Any:
    return _Described(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _loss(output: Tensor, chunk: Tensor) -> Tensor:
    return output.sum()


def _twin(leaf: Any) -> Any:
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _joined(outputs: list[Any]) -> Any:
    """The outputs of all microbatches as those of the whole batch."""
    if len(outputs) == 1:
        return outputs[0]
    leaves = zip(*map(pytree.tree_leaves, outputs), strict=True)
    whole = [torch.cat(each) if isinstance(each[0], Tensor) else each[0] for each in leaves]
    return pytree.tree_unflatten(whole, pytree.tree_structure(outputs[0]))
