"""Proof that an ONNX file equals its PyTorch model, in onnxruntime and a process without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgeprune.export.onnx import Exported
from edgeprune.graph.free_sizes import NOTHING_FREE
from edgeprune.graph.inputs import ExampleInputs, random_like
from edgeprune.runtime.ort_subprocess import run_runner

#: Parity holds while no output is off by more than this share of its largest magnitude.
TOLERANCE = 1e-4
_RANDOM_BATCHES = 4


@dataclass(frozen=True)
class Validation:
    """What onnxruntime computed, against PyTorch; an error is None where no number describes it.

    samples: how many were compared, over all batches.
    """

    max_abs_error: float | None
    max_rel_error: float | None
    samples: int
    passed: bool
    reason: str = ""


def validate(
    compute: Callable[..., Any],
    example_inputs: ExampleInputs,
    dynamic_batch: bool,
    exported: Exported,
    scratch: Path,
    seed: int = 0,
) -> Validation:
    """Compares `exported` with PyTorch, on the example inputs and four random batches.

    compute: a module, or what is called like one. dynamic_batch: of the model; where the file's
    batch is free too, the random ones have 1, 2, 3 and 4 samples, and other sizes than the example
    where those are free. scratch: a folder to write in.
    """
    cases: dict[str, Any] = {}
    samples = 0
    free = dynamic_batch and not exported.form.fixed
    if exported.form.fixed:
        example_inputs = example_inputs.leaving(NOTHING_FREE)
    for i, inputs in enumerate(cases_for(example_inputs, free, seed)):
        samples += inputs.batch or 1
        with torch.no_grad():
            outputs = pytree.tree_leaves(compute(*inputs.args, **inputs.kwargs))
        for name, tensor in zip(exported.input_names, inputs.tensors, strict=True):
            cases[f"case{i}/input/{name}"] = tensor.numpy()
        for k, tensor in enumerate(t for t in outputs if isinstance(t, Tensor)):
            cases[f"case{i}/output/{k}"] = tensor.detach().numpy()
    path = scratch / "cases.npz"
    np.savez(path, **cases)
    answer = run_runner(["validate", exported.path, path, "--tolerance", TOLERANCE])
    path.unlink()
    return Validation(
        answer["max_abs_error"],
        answer["max_rel_error"],
        samples,
        answer["passed"],
        answer.get("reason", ""),
    )


def cases_for(inputs: ExampleInputs, dynamic_batch: bool, seed: int) -> list[ExampleInputs]:
    """The example inputs and four random batches; where sizes beside the batch are free, the first
    two have larger ones and the smallest."""
    generator = torch.Generator().manual_seed(seed)
    batch = inputs.batch or 1
    sizes = range(1, _RANDOM_BATCHES + 1) if dynamic_batch else [batch] * _RANDOM_BATCHES
    others = iter(inputs.free.others(inputs.sizes))
    shapes = [inputs.at(next(others, {})) for _ in sizes]
    drawn = zip(shapes, sizes, strict=True)
    return [inputs, *(random_like(shape, generator, size, batch) for shape, size in drawn)]
