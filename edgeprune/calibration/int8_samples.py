"""A handful of small networks, each in float and in int8: what int8 saves, by kind of kernel.

Built as networks for small devices are, so that kernels find their inputs in the caches as in use.
Two widths of each: what int8 gains grows with the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx

from edgeprune.calibration.sample_network import SampleNetwork
from edgeprune.quantization import PRESETS, LayerByLayer

#: The folder, in a folder or zip of networks, that they lie in.
FOLDER = "int8"
#: Presets by what `export/microbench.py` calls the processors that they are for. Weights of 7 bits
#: (x86 without VNNI) take as long as those of 8.
FOR = {"x86": "x86-vnni", "arm": "arm"}

_SEED = 1  # of the tensors' made-up values
_CLASSES = 100


def _stem(net: SampleNetwork, side: int, width: int, kind: str) -> str:
    return net.activation(net.conv(net.input(1, 3, side, side), width, 3, 2), kind)


def _head(net: SampleNetwork, x: str) -> str:
    channels = net.shapes[x][1]
    mean = net.node("GlobalAveragePool", [x], (1, channels, 1, 1))
    return net.gemm(net.reshape(mean, 1, channels), _CLASSES)


def _residual(net: SampleNetwork, width: int) -> str:
    """ResNet's: windows of 3x3 and sums."""
    x = _stem(net, 64, width, "Relu")
    for channels, repeats in ((width, 2), (2 * width, 2)):
        if channels != net.shapes[x][1]:
            x = net.activation(net.conv(x, channels, 3, 2), "Relu")
        for _ in range(repeats):
            y = net.activation(net.conv(x, channels, 3), "Relu")
            x = net.activation(net.add(net.conv(y, channels, 3), x), "Relu")
    return _head(net, x)


def _inverted(net: SampleNetwork, width: int) -> str:
    """MobileNetV2's: 1x1, depthwise, 1x1 and sums."""
    x = _stem(net, 56, width, "Clip")
    for channels, repeats in ((width, 2), (2 * width, 3)):
        x = _expanded(net, x, channels, 1 if channels == net.shapes[x][1] else 2)
        for _ in range(repeats - 1):
            x = net.add(_expanded(net, x, channels, 1), x)
    return _head(net, net.activation(net.conv(x, 8 * width, 1), "Clip"))


def _expanded(net: SampleNetwork, x: str, channels: int, stride: int) -> str:
    inner = 6 * net.shapes[x][1]
    y = net.activation(net.conv(x, inner, 1), "Clip")
    y = net.activation(net.conv(y, inner, 3, stride, inner), "Clip")
    return net.conv(y, channels, 1)


def _separable(net: SampleNetwork, width: int) -> str:
    """MobileNet's: depthwise and 1x1, in turns."""
    x = _stem(net, 112, width, "Relu")
    for channels, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)):
        inner = net.shapes[x][1]
        x = net.activation(net.conv(x, inner, 3, stride, inner), "Relu")
        x = net.activation(net.conv(x, channels, 1), "Relu")
    return _head(net, x)


def _perceptrons(net: SampleNetwork, width: int) -> str:
    """A transformer's, without its attention, which stays float."""
    x = net.input(1, 12800 // width, width)
    for _ in range(3):
        y = net.activation(net.linear(net.layer_norm(x), 4 * width), "Gelu")
        x = net.add(x, net.linear(y, width))
    return net.layer_norm(x)


def _joined(net: SampleNetwork, width: int) -> str:
    """What is left: pools, concatenations, gates and sums, between convolutions."""
    x = net.pool(_stem(net, 96, width, "Relu"), "MaxPool", 3, 2)
    for _ in range(2):
        squeezed = net.activation(net.conv(x, width // 2, 1), "Relu")
        wide = net.activation(net.conv(squeezed, width, 3), "Relu")
        # One layer after the other: those beside each other run in another order in int8.
        joined = width // 2 + width
        x = net.node("Concat", [squeezed, wide], (1, joined, 24, 24), axis=1)
        mean = net.node("GlobalAveragePool", [x], (1, joined, 1, 1))
        gate = net.activation(net.conv(mean, joined, 1), "Sigmoid")
        y = net.node("Mul", [x, gate], net.shapes[x])
        x = net.add(net.pool(y, "MaxPool", 3, 1), y)
    return _head(net, net.activation(net.conv(x, 4 * width, 1), "Relu"))


_NETWORKS: dict[str, tuple[Callable[[SampleNetwork, int], str], tuple[int, int]]] = {
    "residual": (_residual, (24, 48)),
    "inverted": (_inverted, (16, 32)),
    "separable": (_separable, (48, 96)),
    "perceptrons": (_perceptrons, (64, 192)),
    "joined": (_joined, (32, 64)),
}


def names() -> list[str]:
    """Names of the networks, in the order in which they are measured."""
    return [f"{name}-{width}" for name, (_, widths) in _NETWORKS.items() for width in widths]


def sample(name: str) -> onnx.ModelProto:
    """One of them in float."""
    kind, _, width = name.rpartition("-")
    net = SampleNetwork(_SEED)
    net.open = True  # as most files are; with a fixed one onnxruntime leaves products in float
    return net.model(_NETWORKS[kind][0](net, int(width)))


def write_pairs(folder: Path) -> Iterator[Path]:
    """Writes each network in float (NAME.onnx) and in int8 for each kind of processor
    (NAME.x86.onnx, NAME.arm.onnx) to `folder`/int8, one file at a time.

    Ranges are calibrated on one made-up input: what is computed doesn't sway the time.
    """
    folder = folder / FOLDER
    folder.mkdir()
    for name in names():
        path = folder / f"{name}.onnx"
        model = sample(name)
        onnx.save(model, path)
        yield path
        given = model.graph.input[0]
        shape = [max(dim.dim_value, 1) for dim in given.type.tensor_type.shape.dim]
        values = np.random.default_rng(_SEED).standard_normal(shape).astype(np.float32)
        for processor, preset in FOR.items():
            each = LayerByLayer(path, [{given.name: values}], PRESETS[preset])
            made = folder / f"{name}.{processor}.onnx"
            onnx.save(each.made(), made)
            yield made
