"""Loading: whatever a user calls "my model" becomes an nn.Module in eval mode on the CPU.

Nothing that a file holds is run unless the user says so (`trust`): see loading/safe_pickle.py.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from edgeprune.core.errors import UserError
from edgeprune.graph.capture import quiet
from edgeprune.graph.dynamic import program_sizes
from edgeprune.graph.free_sizes import BATCH
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.names import check_names
from edgeprune.loading.as_used import as_deployed, up_to_date
from edgeprune.loading.checkpoint import (
    Found,
    best_fit,
    found_in,
    in_float32,
    is_odd,
    keys_of,
    mismatch,
    read_safetensors,
)
from edgeprune.loading.folder import from_folder
from edgeprune.loading.foreign import FORMS, check_exists, foreign, is_safetensors
from edgeprune.loading.import_spec import current_directory_importable, import_callable, one_line
from edgeprune.loading.policies.robot import RobotPolicy
from edgeprune.loading.program_schema import check_program
from edgeprune.loading.safe_pickle import harmless, inert, may_be_inert, only_weights, pickled_names
from edgeprune.loading.sandbox import Bounds, confined
from edgeprune.loading.torchvision_compat import with_operators

_OTHER_FORMATS = {
    ".onnx": "an ONNX file: give the trained PyTorch model it came from",
    **{
        s: "not a PyTorch file: give the PyTorch model" for s in (".h5", ".keras", ".tflite", ".pb")
    },
}

# torch stores records as they are: their sizes add up to the file's.
_MOST_UNFOLDED, _UNFOLDED_ANYWAY = 20, 64e6


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for tracing: float32, in eval mode, on the CPU.

    name: the file's stem or the factory's name.
    source: "pickle", "program", "state dict" or "factory".
    example_inputs: what the model itself came with, if anything.
    remarks: what was assumed or changed, for the user to read.
    """

    module: nn.Module
    name: str
    source: str
    example_inputs: ExampleInputs | None = None
    remarks: tuple[str, ...] = ()


def load(spec: str, arch: str | None = None, trust: bool = False) -> LoadedModel:
    """Loads a model file, or calls a factory (`package.module:function`, `file.py:function`).

    arch: the factory of the model whose state dict the file holds.
    trust: whether code in the file may run.
    Raises UserError, one line, for anything that isn't a usable model.
    """
    check_exists(spec)
    path = Path(spec).expanduser()
    loaded = _from_file(path, arch, trust) if path.exists() else _from_factory(spec, "MODEL")
    if arch is not None and loaded.source != "state dict":
        remark = f"--arch {arch} wasn't needed: {spec} holds the whole model"
        loaded = replace(loaded, remarks=(*loaded.remarks, remark))
    return _ready(loaded)


def _of_folder(path: Path) -> LoadedModel:
    module = from_folder(path)
    remarks = module.remarks if isinstance(module, RobotPolicy) else ()
    return LoadedModel(module, path.resolve().name, "folder", remarks=remarks)


def _from_file(path: Path, arch: str | None, trust: bool) -> LoadedModel:
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() in _OTHER_FORMATS:
        raise UserError(f"{path} is {_OTHER_FORMATS[path.suffix.lower()]}")
    if path.suffix == ".py":
        raise UserError(
            f"{path} is Python code: name the function that builds the model, {path}:NAME"
        )
    try:
        with path.open("rb") as file:
            start = file.read(512)
        records = _records(path) if start[:2] == b"PK" else []
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if not start:
        raise UserError(f"{path} is empty: give {FORMS}")
    if is_safetensors(start):
        if arch is None and (path.parent / "config.json").is_file():
            return _of_folder(path.parent)
        return _from_content(path, read_safetensors(path), arch, [])
    words = foreign(path, start)
    if words is not None:
        raise UserError(f"{path} is {words}")
    if any(r.endswith("/constants.pkl") for r in records):
        raise UserError(
            f"{path} is TorchScript, which isn't supported: save the nn.Module "
            "or a torch.export program"
        )
    if any(r.endswith("serialized_exported_program.json") for r in records):
        raise UserError(
            f"{path} was exported by a torch before 2.8: export it again with a newer one"
        )
    if any("/models/" in r and r.endswith(".json") for r in records):
        return _from_program(path, trust)
    zipped = any(r.endswith("/data.pkl") for r in records)
    if trust:
        return _from_content(path, _unpickle_trusted(path), arch, [])
    # Imports what it needs once, for the child too.
    allowed, unknown = _allowed(path, zipped)
    _confined(path, lambda whole: _checked(_unpickle(whole, allowed)))
    return _from_content(path, _unpickle(path, allowed), arch, unknown)


def _records(path: Path) -> list[str]:
    """The names in a zip archive. Raises UserError for one that unfolds, as torch's own never do,
    or that is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} is cut short or damaged ({one_line(error)}): copy it again"
        ) from error
    unfolded = sum(entry.file_size for entry in entries)
    if unfolded > _MOST_UNFOLDED * path.stat().st_size + _UNFOLDED_ANYWAY:
        raise UserError(
            f"{path} unfolds into {unfolded / 1e9:.1f} GB, far more than its size: "
            "it is damaged or made to do harm"
        )
    _check_sums(path, entries)
    return [entry.filename for entry in entries]


def _check_sums(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    """Raises UserError for a record that isn't what was written: torch.load doesn't look."""
    with zipfile.ZipFile(path) as archive:
        for entry in entries:
            if not entry.CRC:  # torch can be told to write none
                continue
            try:
                with archive.open(entry) as record:
                    while record.read(1 << 22):
                        pass
            except Exception as error:
                raise UserError(
                    f"{path} is damaged: {entry.filename} isn't what was written: copy it again"
                ) from error


def _confined(path: Path, read: Callable[[Path], None]) -> None:
    """Has a child process read the file first: what it can't bear, this process isn't given."""
    whole = path.resolve()
    bounds = Bounds.for_file(whole.stat().st_size)
    confined(lambda: read(whole), str(path), bounds)


def _checked(content: Any) -> None:
    for module in _modules_in(content):
        check_names(module)


def _modules_in(content: Any) -> list[nn.Module]:
    return [found.value for found in found_in(content) if isinstance(found.value, nn.Module)]


def _allowed(path: Path, zipped: bool) -> tuple[list[tuple[Any, str]], list[str]]:
    """The objects that a pickle may name, each with its name, and the names that nothing is known
    of: an inert object takes the place of each, so that weights beside them can be read.

    Raises UserError for what no file of weights names.
    """
    try:
        names = (
            torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if zipped
            else pickled_names(path)
        )
    except Exception as error:
        raise _unreadable(path, error) from error
    known = [(harmless(name), name) for name in names]
    unknown = sorted(name for found, name in known if found is None)
    if any(not may_be_inert(name) for name in unknown):
        raise _refused(path, unknown)
    return [(found or inert(name), name) for found, name in known], unknown


def _refused(path: Path, names: list[str]) -> UserError:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return UserError(
        f"{path} names {', '.join(names[:5])}{more}, not known to be harmless: "
        "pass --trust if you trust its author (runs code from the file), "
        "or give its state dict with --arch"
    )


def _unpickle(path: Path, allowed: list[tuple[Any, str]]) -> Any:
    """What torch.save wrote to `path`, made of what is allowed and tensors."""
    try:
        with torch.serialization.safe_globals(allowed), quiet():  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if "GLOBAL" in str(error):
            # The format before torch 1.6 can't be listed, and holds the classes' source.
            raise UserError(
                f"{path} is a whole model in torch's old format: save it again with torch.save, "
                "or pass --trust if you trust its author (runs code from the file)"
            ) from error
        raise _unreadable(path, error) from error


def _unpickle_trusted(path: Path) -> Any:
    current_directory_importable()
    try:
        with quiet():
            return with_operators(lambda: torch.load(path, map_location="cpu", weights_only=False))
    except (AttributeError, ModuleNotFoundError) as error:
        found = re.search(r"attribute '([^']+)' on <module '([^']+)'", str(error))
        name = f"{found[2]}.{found[1]}" if found else error.name or one_line(error)
        if found and found[2].endswith("__main__"):
            mend = (
                "it was defined in the script that saved it: save a state dict there "
                f"and give --arch SCRIPT.py:{found[1]}"
            )
        else:
            mend = "run edgeprune where it can be imported, or put its folder on PYTHONPATH"
        raise UserError(f"{path} needs {name}, which can't be imported: {mend}") from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} isn't a model that torch can load ({one_line(error)}): give {FORMS}")


def _from_content(path: Path, content: Any, arch: str | None, unknown: list[str]) -> LoadedModel:
    """A model from what a file held: a module, or weights, bare or in a checkpoint.

    unknown: what the file names and nobody here knows.
    """
    found = found_in(content)
    modules = [each for each in found if isinstance(each.value, nn.Module)]
    weights = [each for each in found if not isinstance(each.value, nn.Module)]
    if modules:
        return LoadedModel(
            modules[0].value, path.stem, "pickle", None, _taken(path, modules[0], found)
        )
    if unknown and (arch is None or not weights):
        raise _refused(path, unknown)
    if not weights:
        raise UserError(f"{path} holds {keys_of(content)}, without a model in it: give {FORMS}")
    if arch is None:
        raise UserError(
            f"{path} is a state dict, weights without a model: give the function that builds the "
            "model, --arch package.module:function"
        )
    return _from_weights(path, weights, arch)


def _taken(path: Path, taken: Found, found: list[Found]) -> tuple[str, ...]:
    if not taken.place:
        return ()
    others = [repr(each.words) for each in found if each is not taken]
    beside = f", not {', '.join(others[:3])}" if others else ""
    return (f"took {taken.words!r} from {path}{beside}",)


def _from_weights(path: Path, weights: list[Found], arch: str) -> LoadedModel:
    built = _from_factory(arch, "--arch")
    taken, best = best_fit(weights, built.module)
    if best.misses:
        raise mismatch(path, arch, taken, best)
    try:
        # Not strict: a model knows which keys it may miss (num_batches_tracked of old files).
        built.module.load_state_dict(best.weights, strict=False)
    except Exception as error:
        raise UserError(f"{path} doesn't fit --arch {arch}: {one_line(error)}") from error
    remarks = (*built.remarks, *_taken(path, taken, weights), *best.remarks)
    types = {str(v.dtype)[6:] for v in best.weights.values() if is_odd(v)}
    if types:
        remarks = (*remarks, f"weights converted from {', '.join(sorted(types))} to float32")
    return replace(built, name=path.stem, source="state dict", remarks=remarks)


def _from_factory(spec: str, what: str) -> LoadedModel:
    """Calls a factory; it returns an nn.Module, or one and the inputs to call it with."""
    factory: Callable[[], Any] = import_callable(spec, what)
    try:
        # A module that was built already is as good as what builds it.
        result: Any = factory if isinstance(factory, nn.Module) else factory()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{what}: {spec}() raised {one_line(error)}: it is called without arguments"
        ) from error
    inputs = None
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module):
        result, inputs = result[0], _as_inputs(result[1])
    if not isinstance(result, nn.Module):
        raise UserError(f"{what}: {spec}() returned a {type(result).__name__}, not an nn.Module")
    return LoadedModel(result, spec.rpartition(":")[2].rpartition(".")[2], "factory", inputs)


def _as_inputs(inputs: Any) -> ExampleInputs | None:
    """Example inputs as people write them: a tensor, a tuple of arguments, a dict of keywords."""
    if inputs is None or isinstance(inputs, ExampleInputs):
        return inputs
    if isinstance(inputs, Mapping):
        return ExampleInputs((), dict(inputs))
    return ExampleInputs(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})


def _from_program(path: Path, trust: bool) -> LoadedModel:
    if not trust:
        _confined(path, lambda whole: _checked(_program(whole, trust)[1]))
    program, module = _program(path, trust)
    # torch.export forbids train() and eval() on what it captured; the flag itself is harmless.
    for method in ("train", "eval"):
        module.__dict__.pop(method, None)
    remarks = ("captured in training mode: set to evaluation",) if _evaluating(module) else ()
    examples = program.example_inputs
    if examples is None:
        return LoadedModel(module, path.stem, "program", None, remarks)
    inputs = ExampleInputs(tuple(examples[0]), dict(examples[1]))
    if _batch_is_dynamic(program) and (inputs.batch or 1) > 1:
        # Capturing a dynamic batch takes an example of two; a device runs one at a time.
        inputs = inputs.map(lambda t: t[:1])
        remarks = (*remarks, "the program's batch is dynamic: one sample at a time is assumed")
    free, others = program_sizes(program)
    if BATCH in free.sizes and inputs.leaving(free).batch not in (None, 1):
        inputs = inputs.leaving(free).of_batch(1)
        remarks = (*remarks, "the program's batch is dynamic: one sample at a time is assumed")
    if others:
        fixed = f"the program leaves sizes free that the file fixes: {', '.join(others)}"
        remarks = (*remarks, fixed)
    return LoadedModel(module, path.stem, "program", inputs.leaving(free), remarks)


def _program(path: Path, trust: bool) -> tuple[torch.export.ExportedProgram, GraphModule]:
    """A program and the graph module that it makes, its document checked first."""
    try:
        if not trust:
            reader: Any = torch._C.PyTorchFileReader(str(path))
            records = reader.get_all_records()
            check_program(
                records, {r: reader.get_record(r) for r in records if r.endswith(".json")}
            )
        with quiet(), nullcontext() if trust else only_weights():
            program = torch.export.load(path)
            module = program.module(check_guards=False)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    assert isinstance(module, GraphModule)
    return program, module


def _batch_is_dynamic(program: torch.export.ExportedProgram) -> bool:
    """Whether dimension 0 of every input tensor may vary."""
    inputs = set(program.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in program.graph.nodes if n.name in inputs]
    tensors = [v for v in values if isinstance(v, Tensor)]
    return bool(tensors) and all(t.dim() and not isinstance(t.shape[0], int) for t in tensors)


def _evaluating(graph_module: GraphModule) -> bool:
    """Turns the training flags in a graph off; returns whether one was on."""
    changed = False
    for node in list(graph_module.graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if _counts_batches(node):
            graph_module.graph.erase_node(node)
            continue
        values = _arguments(node)
        keeps_no_statistics = values.get("running_mean", node) is None
        off = {"train": False, "training": False, "dropout_p": 0.0}
        for name, value in off.items():
            if values.get(name) and not keeps_no_statistics:
                _set_argument(node, name, value)
                changed = True
    graph_module.recompile()
    return changed


def _counts_batches(node: Node) -> bool:
    """Whether a node is BatchNorm's `num_batches_tracked.add_(1)`, of use in training only."""
    source = node.args[0] if node.args else None
    is_counter = isinstance(source, Node) and str(source.target).endswith("num_batches_tracked")
    return is_counter and node.target is torch.ops.aten.add_.Tensor and not node.users


def _arguments(node: Node) -> dict[str, Any]:
    """An operator's given arguments by name."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _set_argument(node: Node, name: str, value: Any) -> None:
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    if name in node.kwargs:
        node.update_kwarg(name, value)
    else:
        node.update_arg(names.index(name), value)


def _ready(loaded: LoadedModel) -> LoadedModel:
    """The module unwrapped, on the CPU, in float32 and in eval mode; requires_grad as it was."""
    module: Any = loaded.module
    inputs, remarks = loaded.example_inputs, loaded.remarks
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError(
            f"{loaded.name} is TorchScript, which isn't supported: give the nn.Module "
            "or a torch.export program"
        )
    check_names(module)  # before anything goes through the modules: none holds itself
    module = _unwrapped(module)
    up_to_date(module)
    parameters = list(module.parameters())
    if not parameters:
        raise UserError(f"{loaded.name} has no parameters: there is nothing to prune")
    if any(torch.nn.parameter.is_lazy(p) or p.is_meta for p in parameters):
        raise UserError(f"{loaded.name} has parameters without values: save it once it was trained")
    module, converted = in_float32(loaded.name, module.to("cpu"), in_place=True)
    remarks = (*remarks, *converted, *as_deployed(module))
    if inputs is not None:
        inputs = inputs.map(lambda t: (t.float() if is_odd(t) else t).cpu())
    return replace(loaded, module=module.eval(), example_inputs=inputs, remarks=remarks)


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that DataParallel or torch.compile wrapped."""
    seen: set[int] = set()
    while isinstance(module, nn.DataParallel) or hasattr(module, "_orig_mod"):
        inner = module.module if isinstance(module, nn.DataParallel) else module._orig_mod
        if id(module) in seen or not isinstance(inner, nn.Module):
            raise UserError("the model is wrapped in itself: give what torch.compile was given")
        seen.add(id(module))
        module = inner
    return module
