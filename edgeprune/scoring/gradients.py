"""Criteria from gradients: what the loss would change by if a unit's signal were taken away.

A unit's gate is 1; its derivative is the sum of weight times gradient over the slices of all layers
that read the unit (of all its slices where nothing reads it). `gradient` is its size, averaged over
batches (first-order Taylor, Molchanov et al. 2019, arXiv:1906.10771). `saliency` is half its mean
square over single samples, which is the diagonal Fisher approximation of the second-order loss
(Theis et al. 2018, arXiv:1801.05787; optimal brain damage, LeCun et al. 1989). A branch's gate is
read at its output in the same way, so groups and branches compare. Losses of several units add up.

The loss is cross-entropy where labels number the classes of a (samples, classes) output. Otherwise
it is half the squared error to the outputs plus noise, as shares of each output's variance, whose
gradients have the Gauss-Newton matrix as covariance: no labels are needed for that.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.coupling import Coupling, Group
from edgeprune.data.batches import arrange, class_labels, split_batch
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel
from edgeprune.loading.import_spec import one_line
from edgeprune.reconstruction.outputs import floating
from edgeprune.runtime.placement import device_of, double
from edgeprune.scoring.magnitude import Scores, sum_of_others

Array = NDArray[np.float64]

#: Batches for `gradient`, single samples for `saliency`.
BATCHES, SAMPLES = 16, 128


class NoGradients(Exception):
    """Why a model has none."""


def by_gradients(
    traced: TracedModel, coupling: Coupling, batches: Iterable[Any], criterion: str, seed: int
) -> Scores:
    """Scores by `gradient` or `saliency`. Raises UserError for a model without gradients, or a
    batch that doesn't fit it."""
    second = criterion == "saliency"
    gates = _Gates(traced, coupling)
    generator = torch.Generator().manual_seed(seed)
    units = [np.zeros(g.size) for g in coupling.groups]
    branches = np.zeros(len(coupling.branches))
    count = 0
    scales = first_scales(gates.backward, traced, batches)
    for inputs, labels in parts(traced, batches, second):
        try:
            found, found_branches = gates.derivatives(inputs, labels, generator, scales)
        except NoGradients as error:
            raise UserError(
                f"--importance {criterion}: this model has no gradients ({error}): use sensitivity"
            ) from error
        for total, derivative in zip(units, found, strict=True):
            total += derivative**2 / 2 if second else np.abs(derivative)
        branches += found_branches**2 / 2 if second else np.abs(found_branches)
        count += 1
    losses = [total / max(count, 1) + 1e-12 for total in units]
    return Scores(
        criterion,
        tuple(loss / loss.sum() for loss in losses),
        tuple(_curve(loss) for loss in losses),
        tuple((branches / max(count, 1)).tolist()),
    )


def first_scales(backward: Backward, traced: TracedModel, batches: Iterable[Any]) -> list[Tensor]:
    """The scales of a first batch."""
    for inputs, _ in parts(traced, batches, single=False):
        return backward.scales(inputs)
    return []


def parts(
    traced: TracedModel, batches: Iterable[Any], single: bool
) -> Iterable[tuple[tuple[Tensor, ...], Tensor | None]]:
    """Batches, or single samples where the model takes them, as inputs and labels."""
    count = 0
    for batch in batches:
        inputs, labels = split_batch(batch, traced.example_inputs)
        size = 1 if single and traced.dynamic_batch else len(inputs[0])
        for start in range(0, len(inputs[0]), size):
            whole = size == len(inputs[0])
            part = inputs if whole else tuple(t[start : start + size] for t in inputs)
            yield part, None if labels is None else labels[start : start + size]
            count += 1
            if count >= (SAMPLES if single else BATCHES):
                return


def _curve(losses: Array) -> Array:
    """The loss of keeping the n dearest units, n = 0 … size: (size + 1,)."""
    return np.concatenate([[0.0], np.cumsum(np.sort(losses))])[::-1].copy()


class Backward:
    """A graph's loss (see above) and what each weight's going would change it by, to first order.

    wanted: nodes whose `gate` is asked for too.
    """

    def __init__(self, traced: TracedModel, wanted: Collection[str] = ()) -> None:
        self._traced = traced
        self._run = _Recording(traced.graph_module, set(wanted))
        self._device = device_of(traced.graph_module)

    def scales(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The deviation over samples of each floating output, averaged over its elements."""
        call = self._call(inputs)
        with torch.no_grad():
            output = self._traced.graph_module(*call.args, **call.kwargs)
        return [_deviation(leaf) for leaf in floating(output)]

    def products(
        self,
        inputs: Sequence[Tensor],
        labels: Tensor | None,
        generator: torch.Generator,
        scales: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Weight times gradient, by parameter, in the parameter's shape. Raises NoGradients."""
        call = self._call(inputs)
        leaves = pytree.tree_leaves((call.args, dict(call.kwargs)))
        with torch.enable_grad():
            output = self._run.run(*leaves, enable_io_processing=False)
            labels = None if labels is None else labels.to(self._device)
            loss = _loss(output, labels, generator, scales)
            try:
                loss.backward()
            except RuntimeError as error:  # an op without a derivative
                raise NoGradients(one_line(error)) from error
        return {
            name: double(leaf.detach() * leaf.grad)
            for name, leaf in self._run.parameters.items()
            if leaf.grad is not None
        }

    def _call(self, inputs: Sequence[Tensor]) -> ExampleInputs:
        return arrange([t.to(self._device) for t in inputs], self._traced.example_inputs)

    def gate(self, name: str) -> float:
        """The sum of a wanted node's value times its gradient, of the last batch."""
        return self._run.gate(name)


class _Gates:
    """The derivatives of a graph's loss by the gates of its units and branches."""

    def __init__(self, traced: TracedModel, coupling: Coupling) -> None:
        self._coupling = coupling
        self.backward = Backward(traced, {b.output for b in coupling.branches})
        self._reading = reading_dims(traced.graph_module)
        self._slots = [self._read_slots(group) for group in coupling.groups]

    def derivatives(
        self,
        inputs: Sequence[Tensor],
        labels: Tensor | None,
        generator: torch.Generator,
        scales: Sequence[Tensor],
    ) -> tuple[list[Array], Array]:
        """For each group (units,); for all branches (branches,)."""
        products = self.backward.products(inputs, labels, generator, scales)
        units = [
            self._summed(group, slots, products)
            for group, slots in zip(self._coupling.groups, self._slots, strict=True)
        ]
        return units, np.array([self.backward.gate(b.output) for b in self._coupling.branches])

    def _read_slots(self, group: Group) -> list[tuple[str, int]]:
        """The slices of the layers that read a group, else all that it reaches into."""
        slots = list(dict.fromkeys((s.parameter, s.dim) for s in group.slots))
        return [slot for slot in slots if slot in self._reading] or slots

    def _summed(
        self, group: Group, slots: Sequence[tuple[str, int]], products: dict[str, Tensor]
    ) -> Array:
        total = np.zeros(group.size)
        for name, dim in slots:
            label = self._coupling.parameters[name][dim]
            if name in products and label is not None:
                sums = sum_of_others(products[name], dim).cpu().numpy()
                total += group.by_unit(self._coupling.atoms.resolve(label), sums)
        return total


class _Recording(Interpreter):
    """Runs a graph on copies of its parameters that collect gradients, and keeps some values."""

    def __init__(self, module: GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.parameters: dict[str, Tensor] = {}
        self._wanted = wanted
        self._values: dict[str, Tensor] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.parameters, self._values = {}, {}
        return super().run(*args, **kwargs)

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, torch.nn.Parameter):
            if value.is_floating_point():
                name = str(n.target)
                copy = value.detach().requires_grad_()
                value = self.parameters.setdefault(name, copy)
        elif n.name in self._wanted and isinstance(value, Tensor) and value.requires_grad:
            value.retain_grad()
            self._values[n.name] = value
        return value

    def gate(self, name: str) -> float:
        """The sum of a kept value times its gradient."""
        value = self._values.get(name)
        if value is None or value.grad is None:
            return 0.0
        return float((value.detach() * value.grad).sum())


def _loss(
    output: Any, labels: Tensor | None, generator: torch.Generator, scales: Sequence[Tensor]
) -> Tensor:
    leaves = floating(output)
    found = [leaf for leaf in leaves if leaf.requires_grad]
    if not found:
        raise NoGradients("no output depends on a weight")
    if labels is not None:
        classes = class_labels(labels, found)
        if classes is not None:
            return F.cross_entropy(*classes)
    total = found[0].new_zeros(())
    for leaf, scale in zip(leaves, scales, strict=True):
        drawn = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        noise = drawn.to(leaf.dtype).to(leaf.device)
        samples = len(leaf) if leaf.dim() else 1
        total = total + (noise * leaf / scale).sum() / samples
    return total


def _deviation(leaf: Tensor) -> Tensor:
    """Over samples where there are several, else over elements; 1 where nothing varies."""
    values = double(leaf)
    over_samples = values.dim() > 0 and len(values) > 1
    variance = values.var(0).mean() if over_samples else values.var(correction=0)
    return torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)).to(leaf)


def reading_dims(module: GraphModule) -> set[tuple[str, int]]:
    """The (parameter, dimension) pairs along which an op reads its input."""
    found = set()
    for node in module.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        weights = [a for a in pytree.tree_leaves(node.args) if isinstance(a, Node)]
        for at, weight in enumerate(weights):
            if weight.op != "get_attr" or not isinstance(weight.meta.get("val"), Tensor):
                continue
            rank = weight.meta["val"].dim()
            if name.startswith("conv_transpose") and at == 1:
                found.add((str(weight.target), 0))
            elif name.startswith(("conv", "linear")) and at == 1:
                found.add((str(weight.target), 1))
            elif name in ("matmul", "mm", "bmm", "addmm", "baddbmm") and at > 0 and rank > 1:
                found.add((str(weight.target), rank - 2))
            elif name.startswith(("lstm", "gru", "rnn")) and rank > 1:
                found.add((str(weight.target), 1))
    return found
