"""An exported file in fewer bits, and what it computes then."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from edgeprune.export.onnx import Exported, size_mb
from edgeprune.graph.fx_utils import attribute
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.profiles.profile import Profile
from edgeprune.quantization import fp16, int8, preset_for
from edgeprune.quantization.layers import Layers
from edgeprune.quantization.running import Sample, opened
from edgeprune.reconstruction.samples import joined

#: Names of a file's layers, chosen.
Floats = Callable[[Layers], Iterable[str]]

#: Calibration samples beyond these no longer move a range.
MOST_SAMPLES = 400
_FEW_SAMPLES = 32  # where a file is one of several that are priced


def in_precision(
    exported: Exported,
    precision: str,
    profile: Profile,
    calibration: Sequence[Sample],
    final: bool,
    floats: Floats | None = None,
) -> Exported:
    """The file in fp16 or int8, at its own path; the float32 one goes into a folder beside it.

    calibration: inputs by name, one mapping a run of the file. final: for good; else for its costs:
    a few samples, no search for sensitive layers. floats: the layers that stay float in int8, where
    that is decided.
    Raises UserError for a device that doesn't compute in it, and for what can't be quantised.
    """
    folder = exported.path.parent / "float32"
    folder.mkdir(exist_ok=True)
    source = folder / exported.path.name
    data = exported.path.with_name(f"{exported.path.name}.data")
    if data.exists():
        data.replace(folder / data.name)
    exported.path.replace(source)
    samples = calibration[: MOST_SAMPLES if final else _FEW_SAMPLES]
    if precision == "fp16":
        made = fp16(source, exported.path, samples)
    else:
        preset = preset_for(profile)
        if not final:
            preset = replace(preset, max_runs=1, correct_biases=False, calibration="minmax")
        made = int8(source, exported.path, samples, preset, floats)
    return replace(
        exported,
        size_mb=size_mb(exported.path),
        quantized=made,
        float_path=source,
        warnings=(*exported.warnings, *_doubts(made, profile)),
    )


def _doubts(made: Any, profile: Profile) -> Iterator[str]:
    computes = profile.target.computes_in
    if made.precision not in computes:
        yield (
            f"{profile.target.full_name} on {profile.name} computes {made.precision} in "
            f"{computes[0]}: the file is smaller, not faster"
        )
    if not made.within_bound:
        yield (
            f"int8 costs more than it should: the outputs are off by {made.trial_error:.0%} on the "
            "calibration data even with the most sensitive layers left in float"
        )


def layer_parameters(layers: Layers, module: GraphModule) -> dict[str, str]:
    """The parameter that is the weight of each of a file's layers, by the layer's name; without
    those whose weight can't be told.

    module: the graph that the file was made from. A weight keeps its parameter's name unless it was
    computed with; then the tensor that the layer makes has its op's.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    parameters = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    found = {}
    for name in layers.weighted:
        node = layers.nodes[name]
        weight = layers.weight_of(node)
        assert weight is not None
        if weight.name in parameters:
            found[name] = weight.name
            continue
        maker = nodes.get(node.output[0])
        read = [] if maker is None else [n for n in maker.all_input_nodes if n.op == "get_attr"]
        matrices = [str(n.target) for n in read if attribute(module, str(n.target)).dim() > 1]
        if len(matrices) == 1:
            found[name] = matrices[0]
    return found


def staying_float(parameters: Container[str], module: GraphModule) -> Floats:
    """The layers of a file whose weights are these parameters, or are none of the graph's."""

    def chosen(layers: Layers) -> list[str]:
        known = layer_parameters(layers, module)
        return [n for n in layers.weighted if n not in known or known[n] in parameters]

    return chosen


def samples_of(
    calls: Sequence[ExampleInputs], names: Sequence[str], batch: int | None
) -> list[Sample]:
    """Calls as the file takes them: arrays by input name. batch: of a file that takes one alone;
    what is left over is dropped."""
    if batch is not None:
        calls = _of_batch(calls, batch)
    return [
        {name: t.detach().cpu().numpy() for name, t in zip(names, call.tensors, strict=True)}
        for call in calls
    ]


def _of_batch(calls: Sequence[ExampleInputs], size: int) -> list[ExampleInputs]:
    singles = [call.rows(torch.tensor([i])) for call in calls for i in range(call.batch or 0)]
    return [call for call in joined(singles, size) if call.batch == size]


class FileModule(nn.Module):
    """A file, or a model in memory, called like the module that it was made from; onnxruntime
    computes.

    like: that module. batch: of a file that takes one size alone, None for any.
    """

    def __init__(self, model: Path | onnx.ModelProto, like: nn.Module, batch: int | None) -> None:
        super().__init__()
        self._session = opened(model)
        self._like, self._batch = [like], batch  # in a list: its weights are none of this module's
        self._spec: Any = None
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = ExampleInputs(args, kwargs)
        if self._spec is None:
            with torch.no_grad():
                leaves, self._spec = pytree.tree_flatten(self._like[0](*args, **kwargs))
            self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
            self._leaves = leaves
        made = iter(self._tensors(call))
        leaves = [next(made) if i in self._places else x for i, x in enumerate(self._leaves)]
        return pytree.tree_unflatten(leaves, self._spec)

    def _tensors(self, call: ExampleInputs) -> list[Tensor]:
        size, count = self._batch, call.batch
        if size is None or count is None or count == size:
            return self._run(call)
        parts = []
        for start in range(0, count, size):  # the last one is filled up with the first samples
            places = torch.arange(start, start + size) % count
            parts.append(self._run(call.map(lambda t, places=places: t[places])))
        return [torch.cat(column)[:count] for column in zip(*parts, strict=True)]

    def _run(self, call: ExampleInputs) -> list[Tensor]:
        names = [info.name for info in self._session.get_inputs()]
        feeds = {n: t.detach().cpu().numpy() for n, t in zip(names, call.tensors, strict=False)}
        return [torch.from_numpy(array) for array in self._session.run(None, feeds)]
