"""Batches: one batch taken apart, checked against the model, and the accuracy over many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgeprune.core.errors import UserError
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import TracedModel

_LABEL_KEYS = ("labels", "label", "y", "target", "targets")


def split_batch(
    batch: Any, example_inputs: ExampleInputs
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """A batch as the model's input tensors, in the order of `example_inputs.tensors`, and labels.

    Takes a tensor, (x, y), a dict of inputs with or without labels, (dict or tuple, y), and one
    tensor per input, labels last. Raises UserError if shapes (but for the batch) or types differ
    from the example inputs'.
    """
    inputs, labels = _parts(batch, example_inputs)
    expected = example_inputs.tensors
    if len(inputs) != len(expected):
        raise UserError(
            f"a batch holds {len(inputs)} inputs, where the model takes {len(expected)}"
        )
    fitted = tuple(
        _fit(given, wanted, dim)
        for given, wanted, dim in zip(inputs, expected, example_inputs.batch_dims, strict=True)
    )
    if labels is None:
        return fitted, None
    labels = _tensor(labels, "labels")
    samples = fitted[0].shape[example_inputs.batch_dims[0]] if fitted else 0
    if labels.dim() == 0 or (fitted and len(labels) != samples):
        raise UserError(
            f"a batch holds {samples} samples and labels of shape {describe_tensor(labels)}"
        )
    return fitted, labels


def arrange(inputs: Sequence[Tensor], example_inputs: ExampleInputs) -> ExampleInputs:
    """The inputs of a batch as the call that the example inputs stand for."""
    remaining = iter(inputs)
    return example_inputs.map(lambda _: next(remaining))


@dataclass(frozen=True)
class Rebatched:
    """The same batches cut to `size` samples, for a model that takes no other; leftovers go."""

    batches: Iterable[Any]
    example_inputs: ExampleInputs
    size: int

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            inputs, labels = split_batch(batch, self.example_inputs)
            dims = self.example_inputs.batch_dims
            count = inputs[0].shape[dims[0]] // self.size if inputs else 0
            for i in range(0, count * self.size, self.size):
                part = tuple(t.narrow(d, i, self.size) for t, d in zip(inputs, dims, strict=True))
                yield part if labels is None else (part, labels[i : i + self.size])


def as_batches(batches: Iterable[Any], traced: TracedModel) -> Iterable[Any]:
    """Batches as a graph takes them: cut to the one size that it takes, if it takes one."""
    if traced.dynamic_batch:
        return batches
    return Rebatched(batches, traced.example_inputs, traced.batch)


def accuracy(model: nn.Module, test: Iterable[Any], example_inputs: ExampleInputs) -> float:
    """Top-1 accuracy in percent, from the first output of shape (samples, classes).

    Raises UserError if there is no such output, or a label that isn't one of its classes.
    """
    right = total = 0
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        for batch in test:
            inputs, labels = split_batch(batch, example_inputs)
            if labels is None:
                raise UserError("accuracy needs labels: give --data with labels, or --eval")
            call = arrange(inputs, example_inputs)
            with torch.no_grad():
                scores = class_scores(model(*call.args, **call.kwargs), len(labels))
            right += int((scores.argmax(1) == classes_of(labels, scores)).sum())
            total += len(labels)
    finally:
        for module, training in modes:
            module.training = training
    if total == 0:
        raise UserError("the test data holds no batches: accuracy needs some")
    return 100 * right / total


def _parts(batch: Any, example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], Any]:
    """A batch's inputs and labels, nothing checked yet."""
    count = len(example_inputs.tensors)
    if isinstance(batch, Mapping):
        labels = next(
            (batch[key] for key in _LABEL_KEYS if _is_label(key, batch, example_inputs)), None
        )
        return _by_name(batch, example_inputs), labels
    if not isinstance(batch, tuple | list):
        return (batch,), None
    if batch and isinstance(batch[0], Mapping | tuple | list):
        inputs, inner = _parts(batch[0], example_inputs)
        return inputs, batch[1] if len(batch) > 1 else inner
    # Anything behind the labels, such as an index, is the user's own affair.
    return tuple(batch[:count]), batch[count] if len(batch) > count else None


def _is_label(key: str, batch: Mapping[Any, Any], example_inputs: ExampleInputs) -> bool:
    return key in batch and key not in example_inputs.kwargs


def _by_name(batch: Mapping[Any, Any], example_inputs: ExampleInputs) -> tuple[Any, ...]:
    """Keyword inputs by their names, positional ones in the order of what is left."""
    names = example_inputs.kwargs
    missing = [
        name for name, value in names.items() if isinstance(value, Tensor) and name not in batch
    ]
    if missing:
        raise UserError(f"a batch lacks {', '.join(missing)} (it has {', '.join(map(str, batch))})")
    rest = [v for k, v in batch.items() if k not in names and k not in _LABEL_KEYS]
    tensors = len(
        pytree.tree_leaves(tuple(a for a in example_inputs.args if isinstance(a, Tensor)))
    )
    return (*rest[:tensors], *(batch[n] for n, v in names.items() if isinstance(v, Tensor)))


def _fit(given: Any, wanted: Tensor, batch_dim: int) -> Tensor:
    """An input in the model's type; raises UserError unless only precision and batch differ."""
    tensor = _tensor(given, "an input")
    same_kind = (
        tensor.is_floating_point() == wanted.is_floating_point()
        and (tensor.dtype == torch.bool) == (wanted.dtype == torch.bool)
        and not tensor.is_complex()
    )
    if _sample(tensor, batch_dim) != _sample(wanted, batch_dim) or not same_kind:
        raise UserError(
            f"a batch of {describe_tensor(tensor)} doesn't fit the model, which takes "
            f"{describe_tensor(wanted)} (any batch): convert it, or change --input"
        )
    return tensor.to(wanted.dtype)


def _sample(tensor: Tensor, batch_dim: int) -> tuple[int, ...]:
    """A tensor's sizes, whatever its batch is."""
    return tuple(0 if d == batch_dim else size for d, size in enumerate(tensor.shape))


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return (value if isinstance(value, Tensor) else torch.as_tensor(value)).cpu()
    except Exception as error:
        raise UserError(f"{what} of a batch is a {type(value).__name__}, not a tensor") from error


def describe_tensor(tensor: Tensor) -> str:
    """A tensor as its shape and type: "8x3x224x224:float32"."""
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'}:{str(tensor.dtype)[6:]}"


def class_labels(labels: Tensor, outputs: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The (samples, classes) output and class numbers of labels that fit it, None if none does."""
    for scores in outputs:
        if scores.dim() == 2 and len(scores) == len(labels):
            try:
                return scores, classes_of(labels, scores)
            except UserError:
                return None
    return None


def class_scores(output: Any, samples: int) -> Tensor:
    """The class scores among a model's outputs, (samples, classes).

    Raises UserError where there are none.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
    if isinstance(output, Mapping) and not leaves:
        leaves = [value for value in output.values() if isinstance(value, Tensor)]
    for leaf in leaves:
        if leaf.dim() == 2 and len(leaf) == samples:
            return leaf
    shapes = ", ".join(describe_tensor(leaf) for leaf in leaves) or "no tensor"
    raise UserError(
        f"accuracy needs an output of (samples, classes), the model returns {shapes}: give --eval"
    )


def classes_of(labels: Tensor, scores: Tensor) -> Tensor:
    """Labels as class numbers: (samples,), from (samples, 1) and one-hot too."""
    if labels.shape == scores.shape and scores.shape[1] > 1:
        return labels.argmax(1)
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"accuracy needs class numbers as labels, not {describe_tensor(labels)}: give --eval"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise UserError(
            f"labels go from {int(labels.min())} to {int(labels.max())}, and the model has "
            f"{scores.shape[1]} classes (numbered from 0)"
        )
    return labels.long()
