"""Networks drawn at random, whose kernels a device times for its calibration. Needs onnx.

Kernels are timed inside networks rather than alone, because there their inputs come from the
caches as in real use, and one run times dozens. Widths, image sizes and windows are drawn from
what networks for small devices have; widths are uneven, as pruning leaves them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from edgeprune.calibration.sample_network import SampleNetwork

#: The file that `export/microbench.py` runs beside every network.
REFERENCE = "reference.onnx"

_MOST_MACS = 1.5e9  # of one kernel
_MOST_ELEMENTS = 1.5e6  # of one tensor
_MOST_WEIGHTS = 1e7  # of one layer
_MOST_ALTOGETHER = 2e9  # of a network's MACs, about: slow boards run it too
_SIDES = (112, 96, 80, 64, 56, 48, 40, 35, 32, 28, 24, 20, 17, 16, 14, 12, 10, 8, 7, 5, 4)

Block = Callable[[SampleNetwork, str], str]
_ACTIVATIONS = ("", "Relu", "Relu", "Relu", "Clip", "HardSwish", "SiLU", "LeakyRelu", "Gelu")


def sample(seed: int) -> onnx.ModelProto:
    """The network of a seed: the same wherever and whenever it is drawn."""
    net = SampleNetwork(seed)
    kind = net.rng.random()
    last = _tokens(net) if kind < 0.3 else _whole(net) if kind < 0.8 else _image(net)
    return net.model(last)


def reference() -> onnx.ModelProto:
    """A small network that tells how fast the device is just now, run beside every other one."""
    net = SampleNetwork(0)
    x = net.input(1, 64, 28, 28)
    for _ in range(2):
        x = net.activation(net.conv(x, 64, 3), "Relu")
    return net.model(x)


def write_samples(folder: Path, count: int, first: int = 0) -> Iterator[Path]:
    """Writes the reference and `count` networks from `first` on to a folder, one at a time."""
    path = folder / REFERENCE
    onnx.save(reference(), path)
    yield path
    for seed in range(first, first + count):
        path = folder / f"{seed:05d}.onnx"
        onnx.save(sample(seed), path)
        yield path


def _whole(net: SampleNetwork) -> str:
    """A network as they are built: a stem, stages of a few blocks that halve the image and widen,
    a classifier. Most of its weights are at the end, where the image is small."""
    net.steady = net.chance(0.7)
    side = int(net.choose(96, 128, 160, 192, 224, 224, 224, 256, 299))
    x = net.conv(net.input(1, 3, side, side), net.width(8, 64), net.choose(3, 3, 7), 2)
    x = net.activation(x, net.choose("Relu", "Relu", "Clip", "HardSwish", "SiLU", "Gelu"))
    if net.chance(0.3):
        x = net.pool(x, "MaxPool", 3, 2)
    styles = [net.choose(*_BLOCKS) for _ in range(int(net.rng.integers(1, 3)))]
    wider = float(net.choose(1.3, 1.6, 2.0, 2.0, 2.4)) if net.steady else 2.2
    for _ in range(int(net.rng.integers(3, 6))):
        if net.shapes[x][2] > 7:
            channels = net.shapes[x][1]
            least = 0.8 * wider * channels if net.steady else channels
            most = max(_room(net, x, 1.2 * wider * channels, 9 / 4), channels + 1)
            more = net.width(min(least, most - 1), most)
            x = net.activation(net.conv(x, more, net.choose(1, 3), 2), net.choose("", "Relu"))
        repeats = int(net.choose(1, 2, 2, 3, 4, 6)) if net.steady else int(net.rng.integers(1, 5))
        if net.macs < _MOST_ALTOGETHER:
            x = _stage(net, x, net.choose(*styles), repeats)
    return _classified(net, x)


def _classified(net: SampleNetwork, x: str) -> str:
    """A classifier on an image: of its mean, or, as in VGG, of all of it, with much to read."""
    _, channels, height, width = net.shapes[x]
    if net.chance(0.85) or channels * height * width > 25_088:
        return net.gemm(net.reshape(net.mean(x), 1, channels), net.width(10, 1500))
    whole = channels * height * width
    inner = net.width(64, min(4096.0, _MOST_WEIGHTS / whole) + 65)
    x = net.activation(net.gemm(net.reshape(x, 1, whole), inner), "Relu")
    return net.gemm(x, net.width(10, 1500))


def _image(net: SampleNetwork) -> str:
    """A convolutional network, narrowing from some image size on."""
    side = int(net.choose(*_SIDES[:14]))
    if side > 90 or net.chance(0.25):
        stride = net.choose(1, 2, 2, 4)
        kernel = net.choose(3, 3, 5, 7) if stride < 4 else net.choose(4, 7)
        x = net.input(1, 3, side * stride, side * stride)
        if kernel % 2 == 0:
            x = _patches(net, x, net.width(16, 96), kernel)
        else:
            x = net.conv(x, net.width(8, 64), kernel, stride)
        x = net.activation(x, net.choose(*_ACTIVATIONS))
    else:
        x = net.input(1, net.width(8, min(1024, 6e5 / side**2 + 16)), side, side)
    count = int(net.rng.integers(5, 14))
    while count > 0:
        repeats = min(int(net.choose(1, 1, 2, 3, 4)), count)
        x = _stage(net, x, net.choose(*_BLOCKS), repeats)
        count -= repeats if net.macs < _MOST_ALTOGETHER else count
        if net.shapes[x][2] > 7 and net.chance(0.4):
            x = _narrow(net, x)
    return _classified(net, x) if net.chance(0.3) else x


def _stage(net: SampleNetwork, x: str, block: Block, repeats: int) -> str:
    """The same block some times over, with the same draws: as networks repeat their blocks, and a
    pruned one no longer quite does."""
    state = net.rng.bit_generator.state
    uneven = net.chance(0.4)
    for _ in range(repeats):
        if net.macs > _MOST_ALTOGETHER:
            break
        if not uneven:
            net.rng.bit_generator.state = state
        x = block(net, x)
    return x


def _patches(net: SampleNetwork, x: str, channels: int, size: int) -> str:
    n, inner, height, width = net.shapes[x]
    out = (n, channels, height // size, width // size)
    weights = [net.weight(channels, inner, size, size, fan_in=inner * size**2)]
    window = {"kernel_shape": [size] * 2, "strides": [size] * 2}
    return net.node("Conv", [x, *weights, net.weight(channels)], out, **window)


def _room(net: SampleNetwork, x: str, high: float, per: float = 1.0) -> float:
    """The most channels that keep the next layer under the limits. per: MACs a channel pair."""
    _, c, height, width = net.shapes[x]
    pixels = height * width
    most = _MOST_MACS / (pixels * c * per), _MOST_ELEMENTS / pixels, net.widest
    return max(min(high, *most), 9.0)


def _wide(net: SampleNetwork, x: str, high: float, per: float = 1.0, low: float = 8) -> int:
    """The width of a layer that reads `x`: of a steady network not far from what it reads, of
    another up to `high`. per: as in `_room`."""
    if not net.steady:
        return net.width(low, max(_room(net, x, high, per), low + 1))
    channels = net.shapes[x][1]
    most = _room(net, x, 1.6 * channels + 8, per)
    return net.width(min(max(channels / 2.5, 8.0), most / 1.5), most)


def _narrow(net: SampleNetwork, x: str) -> str:
    """Half the image, by a pool or a convolution."""
    if net.chance(0.4):
        return net.pool(x, net.choose("MaxPool", "AveragePool"), net.choose(2, 3), 2)
    channels = _wide(net, x, 1024, 9 / 4, 16)
    return net.activation(net.conv(x, channels, net.choose(1, 3), 2), net.choose("", "Relu"))


def _plain(net: SampleNetwork, x: str) -> str:
    kernel = net.choose(1, 1, 3, 3, 3, 5, 7, (1, 7), (7, 1), (1, 3), (3, 1))
    area = kernel**2 if isinstance(kernel, int) else kernel[0] * kernel[1]
    channels = _wide(net, x, 1024, area)
    return net.activation(net.conv(x, channels, kernel), net.choose(*_ACTIVATIONS))


def _bottleneck(net: SampleNetwork, x: str) -> str:
    """1x1, 3x3 (perhaps grouped), 1x1, and the sum, as in ResNet, ResNeXt and RegNet."""
    outer = net.shapes[x][1]
    least = outer / 5 if net.steady else 8
    inner = net.width(max(least, 8), max(min(outer * 1.5, _room(net, x, 512, 9)), least + 1, 9))
    y = net.activation(net.conv(x, inner), "Relu")
    groups = 1
    if net.chance(0.3):
        each = net.choose(4, 8, 16, 24, 32)
        groups = max(inner // each, 1)
        y = net.activation(net.conv(x, each * groups), "Relu")
        inner = each * groups
    y = net.activation(net.conv(y, inner, 3, groups=groups), "Relu")
    if net.chance(0.3):
        y = _squeeze(net, y)
    return net.activation(net.add(net.conv(y, outer), x), net.choose("Relu", "Relu", ""))


def _basic(net: SampleNetwork, x: str) -> str:
    """Two 3x3 and the sum."""
    outer = net.shapes[x][1]
    y = net.activation(net.conv(x, _wide(net, x, 512, 9), 3), "Relu")
    if outer * net.shapes[y][1] * net.shapes[x][2] ** 2 * 9 > _MOST_MACS:
        return y
    return net.activation(net.add(net.conv(y, outer, 3), x), net.choose("Relu", ""))


def _inverted(net: SampleNetwork, x: str) -> str:
    """Expand, depthwise, perhaps squeeze, project: MobileNet's and EfficientNet's."""
    outer = net.shapes[x][1]
    inner = net.width(max(outer, 8), max(_room(net, x, outer * 6), outer + 1.0, 9.0))
    kind = net.choose("Relu", "Clip", "HardSwish", "SiLU")
    y = net.activation(net.conv(x, inner), kind)
    stride = net.choose(1, 1, 1, 2) if net.shapes[x][2] > 7 else 1
    y = net.activation(net.conv(y, inner, net.choose(3, 3, 5, 7), stride, inner), kind)
    if net.chance(0.4):
        y = _squeeze(net, y)
    if stride == 1 and net.chance(0.7):
        return net.add(net.conv(y, outer), x)
    return net.conv(y, _wide(net, y, 512))


def _overlaid(net: SampleNetwork, x: str) -> str:
    """Convolutions of several windows, summed: RepVGG's and MobileOne's as they are trained."""
    channels = net.shapes[x][1]
    depthwise = net.chance(0.6)
    groups = channels if depthwise else 1
    if not depthwise and channels**2 * net.shapes[x][2] ** 2 * 9 > _MOST_MACS:
        return _plain(net, x)
    y = net.conv(x, channels, 3, 1, groups)
    for _ in range(int(net.rng.integers(1, 4))):
        y = net.add(y, net.conv(x, channels, net.choose(1, 1, 3), 1, groups))
    y = net.activation(net.batch_norm(y) if net.chance(0.2) else y, "Relu")
    return net.activation(net.conv(y, _wide(net, y, 512)), net.choose("", "Relu"))


def _squeeze(net: SampleNetwork, x: str) -> str:
    channels = net.shapes[x][1]
    inner = net.width(4, max(channels / 3, 5))
    y = net.activation(net.conv(net.mean(x), inner), net.choose("Relu", "SiLU", "HardSwish"))
    gate = net.activation(net.conv(y, channels), net.choose("Sigmoid", "HardSigmoid"))
    both = [x, gate] if net.chance(0.5) else [gate, x]
    return net.node("Mul", both, net.shapes[x])


def _grouped(net: SampleNetwork, x: str) -> str:
    """1x1, 3x3 in groups of some width, 1x1, and the sum: ResNeXt's and RegNet's; pruned, groups
    may read more than they write."""
    outer = net.shapes[x][1]
    each = int(net.choose(4, 8, 8, 16, 16, 24, 32))
    wide = net.width(2 * each, max(min(2.0 * outer, _room(net, x, 512)), 2.0 * each + 1))
    groups = max(wide // each, 2)
    y = net.activation(net.conv(x, each * groups), "Relu")
    stride = int(net.choose(1, 1, 2)) if net.shapes[x][2] > 7 else 1
    out = groups * (each if net.chance(0.6) else int(net.rng.integers(2, 2 * each)))
    y = net.activation(net.conv(y, out, 3, stride, groups), "Relu")
    if net.chance(0.3):
        y = _squeeze(net, y)
    if stride == 1:
        return net.activation(net.add(net.conv(y, outer), x), net.choose("Relu", "Relu", ""))
    return net.activation(net.conv(y, _wide(net, y, 512)), "Relu")


def _dense(net: SampleNetwork, x: str) -> str:
    """A few layers whose outputs are appended; some normalise what they read, all of it."""
    normed = net.chance(0.4)
    for _ in range(int(net.rng.integers(1, 4))):
        n, c, height, width = net.shapes[x]
        y = net.activation(net.batch_norm(x), "Relu") if normed else x
        y = net.activation(net.conv(y, net.width(16, _room(net, x, 160))), "Relu")
        y = net.conv(y, net.width(8, 64), 3)
        x = net.node("Concat", [x, y], (n, c + net.shapes[y][1], height, width), axis=1)
    return net.activation(net.conv(x, _wide(net, x, 512)), "Relu")


def _shuffle(net: SampleNetwork, x: str) -> str:
    """Half the channels pass, half are convolved, and all are shuffled: ShuffleNet's."""
    n, c, height, width = net.shapes[x]
    half = max(c // 2, 1)
    x = x if c % 2 == 0 else net.conv(x, 2 * half)
    part = (n, half, height, width)
    if net.chance(0.5):
        first = net.node("Split", [x], part, part, axis=1, num_outputs=2)
        first, second = net.siblings(first, 2)
    else:
        first, second = (
            net.node("Slice", [x, net.integers(a), net.integers(b), net.integers(1)], part)
            for a, b in ((0, half), (half, 2 * half))
        )
    y = net.activation(net.conv(second, half), "Relu")
    y = net.activation(net.conv(net.conv(y, half, 3, 1, half), half), "Relu")
    joined = net.node("Concat", [first, y], (n, 2 * half, height, width), axis=1)
    five = net.reshape(joined, n, 2, half, height, width)
    return net.reshape(net.transpose(five, 0, 2, 1, 3, 4), n, 2 * half, height, width)


def _parallel(net: SampleNetwork, x: str) -> str:
    """Branches of several windows, concatenated: Inception's."""
    n, _, height, width = net.shapes[x]
    ends = []
    for _ in range(int(net.rng.integers(2, 5))):
        y = net.activation(net.conv(x, _wide(net, x, 256)), "Relu")
        for _ in range(int(net.rng.integers(0, 3))):
            kernel = net.choose(3, 3, 5, (1, 7), (7, 1))
            y = net.conv(y, _wide(net, y, 256, 25), kernel)
            y = net.activation(y, "Relu")
        ends.append(y)
    if net.chance(0.5):
        pooled = net.pool(x, net.choose("MaxPool", "AveragePool"), 3, 1)
        ends.append(net.activation(net.conv(pooled, _wide(net, x, 128)), "Relu"))
    channels = sum(net.shapes[y][1] for y in ends)
    joined = net.node("Concat", ends, (n, channels, height, width), axis=1)
    return net.conv(joined, _wide(net, joined, 512))


def _convnext(net: SampleNetwork, x: str) -> str:
    """Depthwise 7x7, then a perceptron on the channels, in their own layout."""
    c = net.shapes[x][1]
    y = net.transpose(net.conv(x, c, net.choose(5, 7), 1, c), 0, 2, 3, 1)
    y = net.linear(net.layer_norm(y), net.width(c, max(_room(net, x, 4 * c), c + 1)))
    y = net.linear(net.activation(y, "Gelu"), c)
    if net.chance(0.5):
        y = net.node("Mul", [y, net.weight(c)], net.shapes[y])
    return net.add(net.transpose(y, 0, 3, 1, 2), x)


def _cheap(net: SampleNetwork, x: str) -> str:
    """Ops with little arithmetic, one after the other."""
    n, c, height, _ = net.shapes[x]
    for _ in range(int(net.rng.integers(1, 4))):
        op = net.choose("Sigmoid", "Tanh", "Add", "Mul", "Sub", "Sqrt", "Erf", "Gate", "Affine")
        if op in ("Sigmoid", "Tanh", "Sqrt", "Erf"):
            x = net.node("Abs", [x], net.shapes[x]) if op == "Sqrt" else x
            x = net.node(op, [x], net.shapes[x])
        elif op == "Gate":
            gate = net.node("Sigmoid", [net.mean(x)], (n, c, 1, 1))
            x = net.node("Mul", [x, gate], net.shapes[x])
        elif op == "Affine":
            scaled = net.node("Mul", [x, net.weight(1, c, 1, 1)], net.shapes[x])
            x = net.node("Add", [scaled, net.weight(1, c, 1, 1)], net.shapes[x])
        else:
            x = net.node(op, [x, net.weight(*net.shapes[x][1:])], net.shapes[x])
    if net.chance(0.3) and height <= 56:
        x = _upsampled(net, x)
    return net.conv(x, _wide(net, x, 512), net.choose(1, 3, 3))


def _normed(net: SampleNetwork, x: str) -> str:
    """A norm over groups of channels as it is exported, or batch norm before a convolution."""
    n, c, height, width = net.shapes[x]
    if net.chance(0.6):
        x = net.activation(net.batch_norm(x), "Relu")
    else:
        groups = net.choose(1, 1, math.gcd(c, 8))
        flat = net.reshape(x, n, groups, c * height * width // groups)
        parts = [net.weight(groups), net.weight(groups)]
        x = net.node("InstanceNormalization", [flat, *parts], net.shapes[flat])
        x = net.reshape(x, n, c, height, width)
        scaled = net.node("Mul", [x, net.weight(c, 1, 1)], net.shapes[x])
        x = net.node("Add", [scaled, net.weight(c, 1, 1)], net.shapes[x])
    return net.conv(x, _wide(net, x, 512), net.choose(1, 1, 3))


def _upsampled(net: SampleNetwork, x: str) -> str:
    n, c, height, width = net.shapes[x]
    if c * height * width * 4 > _MOST_ELEMENTS:
        return x
    out = (n, c, 2 * height, 2 * width)
    if net.chance(0.6):
        scales = net.numbers(1, 1, 2, 2)
        mode = net.choose("nearest", "linear")
        return net.node("Resize", [x, "", scales], out, mode=mode)
    channels = net.width(8, max(_room(net, x, 128, 16), 9))
    size = int(net.choose(2, 2, 3, 4))
    weights = [net.weight(c, channels, size, size, fan_in=c), net.weight(channels)]
    window = {"kernel_shape": [size] * 2, "strides": [2, 2]}
    window["pads"], window["output_padding"] = [int(size > 2)] * 4, [size % 2] * 2
    shape = (n, channels, 2 * height, 2 * width)
    return net.node("ConvTranspose", [x, *weights], shape, **window)


def _unfolded(net: SampleNetwork, x: str) -> str:
    """Each place of a window attends to its like in the other windows: MobileViT's."""
    n, c, height, width = net.shapes[x]
    if height % 2 or width % 2 or height * width > 4096:
        return net.conv(x, _wide(net, x, 256), 3)
    patches = height * width // 4
    y = net.reshape(x, n * c * height // 2, 2, width // 2, 2)
    y = net.reshape(net.transpose(y, 0, 2, 1, 3), n, c, patches, 4)
    y = net.reshape(net.transpose(y, 0, 3, 2, 1), n * 4, patches, c)
    heads = int(net.choose(1, 2, 4))
    y = net.add(y, _attention(net, net.layer_norm(y), heads, int(net.choose(16, 24, 32))))
    z = net.activation(net.linear(net.layer_norm(y), net.width(16, 2 * c + 17)), "SiLU")
    y = net.reshape(net.add(y, net.linear(z, c)), n, 4, patches, c)
    y = net.reshape(net.transpose(y, 0, 3, 2, 1), n * c * height // 2, width // 2, 2, 2)
    y = net.reshape(net.transpose(y, 0, 2, 1, 3), n, c, height, width)
    return net.conv(y, _wide(net, y, 256))


_BLOCKS: tuple[Block, ...] = (
    *(_plain, _plain, _bottleneck, _basic, _inverted, _inverted, _inverted, _grouped),
    *(_dense, _shuffle, _shuffle, _parallel, _convnext, _cheap, _normed, _unfolded, _overlaid),
)


def _tokens(net: SampleNetwork) -> str:
    """A transformer, or a mixer, on tokens; some begin with an image."""
    rows = int(net.choose(197, 196, 145, 64, 49, 50, 17, 100, 256, 16, 8, 384, 784, 3136))
    heads = int(net.choose(1, 2, 3, 3, 4, 6, 6, 8, 12))
    size = int(net.choose(16, 24, 32, 40, 48, 64, 64))
    if rows > 400:  # as in the first stages of Swin, which are narrow
        heads, size = min(heads, 6 if rows < 1000 else 3), min(size, 32)
    features = heads * size if net.chance(0.7) else net.width(32, min(800, 150_000 / rows + 33))
    side = math.isqrt(rows)
    if side * side == rows and net.chance(0.5):
        x = _patches(net, net.input(1, 3, 8 * side, 8 * side), features, 8)
        x = net.transpose(net.reshape(x, 1, features, rows), 0, 2, 1)
    else:
        x = net.input(1, rows, features)
    most = max(int(_MOST_ALTOGETHER / (12 * rows * features**2)), 2)
    alike, state = net.chance(0.6), net.rng.bit_generator.state
    for _ in range(min(int(net.choose(2, 3, 4, 6, 8, 12)), most)):
        if alike:
            net.rng.bit_generator.state = state
        mix = net.rng.random()
        if mix < 0.7:
            x = net.add(x, _attended(net, net.layer_norm(x), heads, size))
        elif mix < 0.85:
            x = net.add(x, _mixing(net, net.layer_norm(x)))
        inner = net.width(min(features, 32) if net.chance(0.3) else features, 4.2 * features + 33)
        y = net.activation(net.linear(net.layer_norm(x), inner), net.choose("Gelu", "Relu", "SiLU"))
        x = net.add(x, net.linear(y, features))
    return x


def _mixing(net: SampleNetwork, x: str) -> str:
    """A perceptron over the tokens, between two transposes."""
    rows = net.shapes[x][1]
    y = net.linear(net.transpose(x, 0, 2, 1), net.width(16, 2 * rows + 20))
    return net.transpose(net.linear(net.activation(y, "Gelu"), rows), 0, 2, 1)


def _attended(net: SampleNetwork, x: str, heads: int, size: int) -> str:
    """Attention of all tokens, of those in a window, or of channels."""
    n, rows, features = net.shapes[x]
    side = math.isqrt(rows) // 7
    if net.chance(0.15):
        return _covariance(net, x, heads, size)
    if rows <= 400 or rows != (7 * side) ** 2:
        return _attention(net, x, heads, size)
    y = net.transpose(net.reshape(x, n, side, 7, side, 7, features), 0, 1, 3, 2, 4, 5)
    y = _attention(net, net.reshape(y, n * side * side, 49, features), heads, size)
    y = net.transpose(net.reshape(y, n, side, side, 7, 7, features), 0, 1, 3, 2, 4, 5)
    return net.reshape(y, n, rows, features)


def _covariance(net: SampleNetwork, x: str, heads: int, size: int) -> str:
    """Channels attend to channels: XCiT's."""
    n, rows, features = net.shapes[x]
    packed = net.reshape(net.linear(x, 3 * heads * size), n, rows, 3, heads, size)
    parts = [(1, n, heads, size, rows)] * 3
    first = net.node("Split", [net.transpose(packed, 2, 0, 3, 4, 1)], *parts, axis=0, num_outputs=3)
    q, k, v = (net.reshape(p, n, heads, size, rows) for p in net.siblings(first, 3))
    keys = net.transpose(k, 0, 1, 3, 2)
    scores = net.node("MatMul", [q, keys], (n, heads, size, size))
    weights = net.node("Softmax", [scores], net.shapes[scores], axis=-1)
    mixed = net.node("MatMul", [weights, v], (n, heads, size, rows))
    return net.linear(
        net.reshape(net.transpose(mixed, 0, 3, 1, 2), n, rows, heads * size), features
    )


def _attention(net: SampleNetwork, x: str, heads: int, size: int) -> str:
    n, rows, features = net.shapes[x]
    inner, split = heads * size, (n, rows, heads, size)
    if net.chance(0.5):  # one product for all three
        packed = net.reshape(net.linear(x, 3 * inner), n, rows, 3, heads, size)
        turned = net.transpose(packed, 2, 0, 3, 1, 4)
        parts = [(1, n, heads, rows, size)] * 3
        first = net.node("Split", [turned], *parts, axis=0, num_outputs=3)
        q, k, v = (net.reshape(p, n, heads, rows, size) for p in net.siblings(first, 3))
    else:
        q, k, v = (
            net.transpose(net.reshape(net.linear(x, inner), *split), 0, 2, 1, 3) for _ in "qkv"
        )
    scale = net.scalar(size**-0.5)
    q = net.node("Mul", [q, scale], net.shapes[q])
    keys = net.transpose(k, 0, 1, 3, 2)
    scores = net.node("MatMul", [q, keys], (n, heads, rows, rows))
    if net.chance(0.2):
        scores = net.add(scores, net.weight(1, heads, rows, rows))
    weights = net.node("Softmax", [scores], net.shapes[scores], axis=-1)
    mixed = net.node("MatMul", [weights, v], (n, heads, rows, size))
    joined = net.reshape(net.transpose(mixed, 0, 2, 1, 3), n, rows, inner)
    return net.linear(joined, features)
