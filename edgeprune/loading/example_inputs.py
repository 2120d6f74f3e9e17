"""Inputs: what a model is called with, from --input, its own configuration or its first layer."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.graph.capture import state_kept
from edgeprune.graph.dynamic import batch_elsewhere
from edgeprune.graph.fidelity import has_values, in_eval
from edgeprune.graph.free_sizes import BATCH, NOTHING_FREE, FreeSizes
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.loading.import_spec import one_line
from edgeprune.loading.input_spec import InputSpec, parse_inputs

_CONFIGURED = 2**26  # elements that a model may ask for by itself

# Sizes tried for a first convolution, the usual first; classifiers with a fixed head accept one.
_SIZES_1D = ((1024,), (256,), (128,), (512,), (16000,), (64,), (32,))
_SIZES_2D = tuple((s, s) for s in (224, 32, 299, 256, 64, 28, 128, 96, 384, 512))
_SIZES_3D = ((16, 112, 112), (8, 64, 64), (16, 224, 224), (32, 32, 32))
_LENGTHS = (16, 8, 32, 64, 128)


def example_inputs(
    module: nn.Module,
    specs: Sequence[InputSpec] = (),
    loaded: ExampleInputs | None = None,
    seen: ExampleInputs | None = None,
) -> tuple[ExampleInputs, tuple[str, ...]]:
    """Inputs that `module` was seen to run on, and what was assumed to find them.

    specs: what the user asked for; wins over `loaded`, what the model file came with, that over
    `seen`, a sample of the user's data, that over the model's own configuration, and that over a
    guess from its first layer, where the model confirms it.
    Raises UserError if the model can't run on what was asked, or nothing was found that it runs on.
    """
    if specs:
        values = [(spec.name, _contents(spec, module)) for spec in specs]
        inputs = _nested(module, values) or _arrange(module, values)
        free = _free(specs, [value for _, value in values], inputs.tensors)
        inputs = inputs.leaving(free or _carried(loaded, inputs))
        return _checked(module, inputs, "as --input asks: give another --input"), ()
    if loaded is not None:
        mend = "which came with it: give --input"
        return _checked(module, loaded, mend), ()
    if seen is not None and _failure(module, seen) is None:
        return seen, (_assumed(seen, "--data"),)
    return _found(module)


def _free(
    specs: Sequence[InputSpec], values: Sequence[Tensor], tensors: Sequence[Tensor]
) -> FreeSizes:
    """The sizes that --input leaves free, in the order in which the call has its tensors. A letter
    in dimension 0 of each input is the batch, which is free as it is; one in all inputs and first
    in some is so too."""
    batch = {spec.free.get(0) for spec in specs}
    named = {id(value): spec.free for spec, value in zip(specs, values, strict=True)}
    places = tuple(dict(named.get(id(tensor), {})) for tensor in tensors)
    sizes = {name: size for spec in specs for name, size in spec.sizes.items()}
    free = FreeSizes(places, sizes)
    if len(batch) == 1:
        return free.without([name for name in batch if name])
    everywhere = [n for n in sizes if all(n in place.values() for place in places)]
    return free.renamed(next((n for n in everywhere if n in batch), BATCH), BATCH)


def leaving_free(inputs: ExampleInputs, texts: Sequence[str]) -> ExampleInputs:
    """Example inputs whose free sizes are named as --input names them, a text for each tensor:
    "1x3xHxW=64..512". Raises UserError for texts that don't fit."""
    specs, tensors = parse_inputs(texts), inputs.tensors
    fits = len(specs) == len(tensors) and all(
        len(spec.shape) == tensor.dim()
        and all(
            size == tensor.shape[d] for d, size in enumerate(spec.shape) if d and d not in spec.free
        )
        for spec, tensor in zip(specs, tensors, strict=True)
    )
    if not fits:
        raise UserError(
            f"free_sizes={', '.join(texts)} doesn't fit example_inputs, which are "
            f"{describe(inputs)}: give one text for each tensor, with letters for free sizes"
        )
    free = _free(specs, tensors, tensors)
    for name, size in free.of(tensors).items():
        if not free.sizes[name].takes(size):
            raise UserError(f"free_sizes: the example's {name} is {size}: {free.sizes[name]} asked")
    return inputs.leaving(free)


def _carried(loaded: ExampleInputs | None, inputs: ExampleInputs) -> FreeSizes:
    """What the user's own program leaves free, where other sizes are given for its inputs."""
    if loaded is None or [t.dim() for t in loaded.tensors] != [t.dim() for t in inputs.tensors]:
        return NOTHING_FREE
    given = loaded.free.of(inputs.tensors)
    outside = [n for n, size in loaded.free.sizes.items() if not size.takes(given[n])]
    return loaded.free.without(outside)


def describe(inputs: ExampleInputs) -> str:
    """The shapes as --input takes them: "1x3x224x224", "1x16:int64, mask=1x16:bool"."""
    named = [(None, value) for value in inputs.args] + list(inputs.kwargs.items())
    specs = [InputSpec(n, tuple(v.shape), v.dtype) for n, v in named if isinstance(v, Tensor)]
    return ", ".join(map(str, specs)) or "no tensors"


def check_inputs(module: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """`inputs`, if the model runs on them; UserError if it doesn't, or has no values."""
    if not has_values(module):
        raise UserError("the model lies on the meta device, without values: load its weights first")
    return _checked(module, inputs, "given as example_inputs: give others")


def _checked(module: nn.Module, inputs: ExampleInputs, mend: str) -> ExampleInputs:
    error = _failure(module, inputs)
    if error is not None:
        raise UserError(
            f"the model can't run on {describe(inputs)} ({one_line(error)}), {mend}"
        ) from error
    return _with_batch(module, inputs)


def _with_batch(module: nn.Module, inputs: ExampleInputs) -> ExampleInputs:
    """With the batch named, where it lies in another dimension than the first."""
    with in_eval(module):
        found = batch_elsewhere(module, inputs)
    return inputs.leaving(found) if found else inputs


def _failure(module: nn.Module, inputs: ExampleInputs) -> Exception | None:
    """Why a forward pass fails, None if it doesn't; leaves the module as it was."""
    try:
        with torch.no_grad(), in_eval(module), state_kept(module):
            module(*inputs.args, **inputs.kwargs)
    except Exception as error:
        return error
    return None


def _contents(spec: InputSpec, module: nn.Module) -> Tensor:
    """Deterministic values of a shape and type; integers are valid indices of an embedding."""
    if spec.value is not None:
        return spec.value
    generator = torch.Generator().manual_seed(0)
    if spec.dtype.is_floating_point or spec.dtype.is_complex:
        return torch.randn(spec.shape, generator=generator, dtype=spec.dtype)
    if spec.dtype == torch.uint8:  # bytes of a picture
        return torch.randint(0, 256, spec.shape, generator=generator, dtype=spec.dtype)
    if spec.dtype == torch.bool:
        return torch.ones(spec.shape, dtype=torch.bool)
    embedding = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    high = min(embedding.num_embeddings, 100) if embedding is not None else 2
    return torch.randint(0, high, spec.shape, generator=generator, dtype=spec.dtype)


def _arrange(module: nn.Module, values: Sequence[tuple[str | None, Any]]) -> ExampleInputs:
    """Named and unnamed values as a call, by position as far as forward's parameters go."""
    parameters = inspect.signature(module.forward).parameters
    kinds = {p.kind for p in parameters.values()}
    positional = [n for n, p in parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]
    accepted = [n for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes = f"forward takes {', '.join(accepted) or 'no named inputs'}"
    args = [value for name, value in values if name is None]
    if len(args) > len(positional) and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise UserError(f"--input gives {len(args)} inputs without a name, and {takes}")
    named: dict[str, Any] = {}
    for name, value in values:
        if name is None:
            continue
        if name in named or name in positional[: len(args)]:
            raise UserError(f"--input gives {name} twice: {takes}")
        if name not in accepted and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise UserError(f"--input names {name}, but {takes}")
        named[name] = value
    for name in positional[len(args) :]:
        if name not in named:
            break
        args.append(named.pop(name))
    missing = [n for n in _required(module) if n not in (*positional[: len(args)], *named)]
    if missing:
        raise UserError(f"give --input for {', '.join(missing)} too: {takes}")
    return ExampleInputs(tuple(args), named)


def _required(module: nn.Module) -> list[str]:
    """The names of forward's parameters that have no default."""
    parameters = inspect.signature(module.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _found(module: nn.Module) -> tuple[ExampleInputs, tuple[str, ...]]:
    """The first inputs among the configured and the guessed ones that the model runs on."""
    first: tuple[ExampleInputs, Exception] | None = None
    for inputs, origin in _configured(module):
        error = _failure(module, inputs)
        if error is None:
            return inputs, (_assumed(inputs, origin),)
        first = first or (inputs, error)
    required = _required(module)
    if len(required) > 1:
        raise UserError(
            f"forward needs several inputs ({', '.join(required)}): give one --input for each, "
            f"such as --input {required[0]}=1x3x224x224"
        )
    guesses = _guessed(module)
    for inputs, origin in guesses:
        error = _failure(module, inputs)
        if error is None:
            _check_confirmed(module, inputs, (other for other, _ in guesses))
            return inputs, (_assumed(inputs, origin),)
        first = first or (inputs, error)
    if first is None:
        raise UserError("the model's input shape isn't known: give --input, such as 1x3x224x224")
    raise UserError(
        f"no input shape was found that the model runs on (it fails on {describe(first[0])}: "
        f"{one_line(first[1])}): give --input"
    ) from first[1]


def _nested(module: nn.Module, values: Sequence[tuple[str | None, Any]]) -> ExampleInputs | None:
    """The call where names lead into dicts or lists: "obs.image" is obs["image"], or the only
    argument's "obs.image". None where no name does. Raises UserError where none of these runs."""
    names = [name or "" for name, _ in values]
    if not any("." in name or "[" in name for name in names):
        return None
    required = _required(module)
    tried = [_tree(values)]
    if len(required) == 1:
        (only,) = required
        short = {(name or "").removeprefix(f"{only}."): value for name, value in values}
        tried += [{only: inner} for inner in (dict(values), short, _tree(values))]
    for arguments in tried:
        if not set(arguments) <= set(inspect.signature(module.forward).parameters):
            continue
        inputs = _arrange_quietly(module, arguments)
        if _failure(module, inputs) is None:
            return inputs
    takes = ", ".join(required) or "no named inputs"
    raise UserError(
        f"--input {', '.join(names)}: the model runs with these neither as keys of a dict nor as "
        f"attributes: forward takes {takes}"
    )


def _tree(values: Sequence[tuple[str | None, Any]]) -> dict[str, Any]:
    """Dotted names as dicts, and numbers in brackets as lists."""
    root: dict[str, Any] = {}
    for name, value in values:
        *path, last = re.findall(r"[^.\[\]]+", name or "")
        here = root
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return {key: _listed(value) for key, value in root.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(item) for key, item in value.items()}
    if inner and all(key.isdigit() for key in inner):
        return [inner[key] for key in sorted(inner, key=int)]
    return inner


def _check_confirmed(
    module: nn.Module, inputs: ExampleInputs, others: Iterable[ExampleInputs]
) -> None:
    """Raises UserError for a guessed size that is one of many: what a model costs hangs on it.

    A head of fixed size confirms it; so does the convention of the library that the class is of.
    """
    if type(module).__module__.partition(".")[0] in ("torchvision", "timm"):
        return
    (value,) = inputs.tensors
    for other in others:
        (another,) = other.tensors
        if another.dim() != value.dim() or _failure(module, other) is not None:
            continue
        pairs = zip(value.shape, another.shape, strict=True)
        asked = "x".join("N" if size != given else str(size) for size, given in pairs)
        kind = "" if value.is_floating_point() else ":int64"
        raise UserError(
            "the model takes inputs of many sizes, and what it costs hangs on that: give the one "
            f"that it is used at, --input {asked}{kind} with a number for N, or --data"
        )


def _assumed(inputs: ExampleInputs, origin: str) -> str:
    return f"input assumed {describe(inputs)} (from {origin}): give --input to change it"


def _configured(module: nn.Module) -> Iterator[tuple[ExampleInputs, str]]:
    """Inputs from what timm, Lightning, transformers and ultralytics models say of themselves."""
    for name in ("pretrained_cfg", "default_cfg"):
        config = _attribute(module, name)
        get: Callable[[str], Any] = config.get if isinstance(config, Mapping) else _getter(config)
        size = get("input_size")
        if isinstance(size, tuple | list) and all(isinstance(s, int) and s > 0 for s in size):
            if math.prod(size) > _CONFIGURED:
                raise UserError(
                    f"the model's own {name} asks for an input of {'x'.join(map(str, size))}: "
                    "give --input"
                )
            yield ExampleInputs((_contents(InputSpec(None, (1, *size)), module),), {}), name
    size = _image_size(module)
    channels = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    if size is not None and channels is not None and math.prod(size) <= _CONFIGURED:
        spec = InputSpec(None, (1, channels, *size))
        yield ExampleInputs((_contents(spec, module),), {}), "its training's imgsz"
    for name in ("example_input_array", "dummy_inputs"):
        value = _attribute(module, name)
        if isinstance(value, Tensor):
            value = (value,)
        if isinstance(value, Mapping) and value:
            named = ExampleInputs.named(value)
            yield replace(_arrange_quietly(module, named.kwargs), names=named.names), name
        elif isinstance(value, tuple | list) and value:
            yield ExampleInputs(tuple(value), {}), name


def _image_size(module: nn.Module) -> tuple[int, int] | None:
    """Height and width that an ultralytics model keeps of its training."""
    arguments = _attribute(module, "args")
    get = arguments.get if isinstance(arguments, Mapping) else _getter(arguments)
    said: Any = get("imgsz")
    height, width = said if isinstance(said, tuple | list) and len(said) == 2 else (said, said)
    right = all(isinstance(n, int) and n > 0 for n in (height, width))
    return (height, width) if right else None


def _attribute(module: nn.Module, name: str) -> Any:
    try:
        return getattr(module, name, None)
    except Exception:  # a property of somebody else's class that can't be computed here
        return None


def _getter(config: Any) -> Callable[[str], Any]:
    return lambda name: getattr(config, name, None)


def _arrange_quietly(module: nn.Module, values: Mapping[str, Any]) -> ExampleInputs:
    try:
        return _arrange(module, list(values.items()))
    except UserError:  # the forward pass will say what is wrong with them
        return ExampleInputs((), dict(values))


def _guessed(module: nn.Module) -> Iterator[tuple[ExampleInputs, str]]:
    """Inputs for the first layer that says how many channels it takes."""
    for name, layer in module.named_modules():
        specs = list(_layer_specs(layer))
        for spec in specs:
            origin = f"the first layer {name or type(layer).__name__}"
            yield ExampleInputs((_contents(spec, module),), {}), origin
        if specs:
            return


def _layer_specs(layer: nn.Module) -> Iterator[InputSpec]:
    """The inputs that a layer would take, the likeliest first; none if it could be anything.

    Shapes: convolution (1, in_channels, *size), Linear (1, in_features) or (1, tokens,
    in_features), Embedding (1, tokens), recurrent (1, steps, input_size).
    """
    if isinstance(layer, nn.Embedding):
        yield from (InputSpec(None, (1, length), torch.int64) for length in _LENGTHS)
    elif isinstance(layer, nn.Linear):
        yield InputSpec(None, (1, layer.in_features))
        yield from (InputSpec(None, (1, length, layer.in_features)) for length in _LENGTHS)
    elif isinstance(layer, nn.RNNBase):
        yield from (InputSpec(None, (1, length, layer.input_size)) for length in _LENGTHS)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        dimensions = len(layer.kernel_size)
        sizes: Sequence[tuple[int, ...]] = (_SIZES_1D, _SIZES_2D, _SIZES_3D)[dimensions - 1]
        if layer.transposed:  # generators start from a small map
            sizes = [(size,) * dimensions for size in (1, 4, 7, 8, 16)]
        yield from (InputSpec(None, (1, layer.in_channels, *size)) for size in sizes)


def as_example_inputs(value: Any) -> ExampleInputs:
    """A tensor, tuple or dict as a call's arguments."""
    if isinstance(value, ExampleInputs):
        return value
    if isinstance(value, Tensor):
        return ExampleInputs((value,), {})
    if isinstance(value, tuple | list):
        return ExampleInputs(tuple(value), {})
    if isinstance(value, Mapping):
        return ExampleInputs.named(value)
    raise UserError(
        f"example_inputs is a {type(value).__name__}: give a tensor, a tuple of positional "
        "arguments or a dict of keyword arguments"
    )
