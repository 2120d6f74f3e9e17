"""Hostile and broken files, thousands of them: nothing may run, be written elsewhere, or crash.

    PYTHONPATH=. python benchmarks/soak.py [--count 1200] [--json FILE] [--seed 0] [KIND …]

Kinds (all unless named): pickle, program, onnx, profile, npz, results. Each file is a sound one
that was damaged (bytes flipped, cut, doubled; texts replaced by code, paths, huge numbers) or made
to do harm, and goes through the command line in a process of its own with no internet, in an empty
folder. Counted are: a marker that appeared or anything else beside the output folder; death by a
socket; over 2 GB; over 60 s; exit status 1; death by a signal. A run goes on from FILE.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from edgeprune.cli.app import main as command_line
from edgeprune.loading.kernel import forbid_internet

_ROOT = Path(__file__).parents[1]
MEMORY, SECONDS = 2e9, 60
MARKER = "EXECUTED"


@dataclass(frozen=True)
class Tried:
    """What went wrong, the last line that was said, seconds, and the exit status (-1: killed)."""

    wrong: list[str]
    line: str
    seconds: float
    status: int


CODE = (
    f"__import__('os').system('touch {MARKER}')",
    f"x\", exec(\"open('{MARKER}','w')\"), \"",
    f"x'], open('{MARKER}', 'w'), ['",
    f"\n    open('{MARKER}', 'w')\n",
    f"torch.ops.aten.from_file.default('{MARKER}')",
    "torch.hub.load",
    "os.system",
    "builtins.eval",
    "../../../tmp/escape",
    "/etc/passwd",
    "9**9**9**9",
    "a" * 100_000,
    "[" * 5000,
    "class",
    "in",
    "\x00",
    "nan",
    "",
)
NUMBERS = (0, -1, 2**31, 2**63 - 1, 10**30, 1e308, float("nan"), True, None)


class _Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)
    ).eval()


def _noise(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _saved(write: Callable[[Any], None]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, or replaced by a text."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5, 30))):
        at = draw.randrange(max(len(data), 1))
        way = draw.randrange(5)
        if way == 0 and data:
            data[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del data[at : at + draw.choice((1, 4, 100, len(data)))]
        elif way == 2:
            data[at:at] = data[at : at + draw.choice((1, 8, 200))]
        elif way == 3:
            text = draw.choice(CODE).encode()[:200]
            data[at : at + len(text)] = text
        else:
            data[at:at] = draw.randbytes(draw.choice((1, 4, 16)))
    return bytes(data)


def _rezipped(content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """An archive with each record changed, its checksums right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return out.getvalue()


def _changed(document: Any, draw: random.Random) -> Any:
    """A JSON or YAML document with one value replaced, moved, added or gone."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in list(value if isinstance(value, dict) else range(len(value))):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                collect(value[key])

    collect(document)
    if not places:
        return document
    holder, key = draw.choice(places)
    way = draw.randrange(5)
    if way == 0:
        holder[key] = draw.choice(CODE)
    elif way == 1:
        holder[key] = draw.choice(NUMBERS)
    elif way == 2:
        other, at = draw.choice(places)
        with contextlib.suppress(LookupError):
            holder[key] = json.loads(json.dumps(other[at]))
    elif way == 3 and isinstance(holder, dict):
        holder[draw.choice(CODE)] = holder[key]
    else:
        del holder[key]
    return document


# -- kinds: a file's bytes and name ----------------------------------------------------------------


def _pickle(draw: random.Random, sound: dict[str, bytes]) -> bytes:
    way = draw.randrange(4)
    if way == 0:
        return _damaged(sound["pickle"], draw)
    if way == 1:
        return _rezipped(
            sound["pickle"], lambda n, c: _damaged(c, draw) if n.endswith("data.pkl") else c
        )
    model = _net()
    if way == 2:
        holder = getattr(
            draw.choice(list(model.modules())),
            f"_{draw.choice(('modules', 'parameters', 'buffers'))}",
        )
        holder[draw.choice(CODE)] = draw.choice(
            (nn.ReLU(), nn.Parameter(torch.ones(2)), None, model, 3)
        )
        return _saved(lambda file: torch.save(model, file))
    layer: Any = draw.choice(list(model.modules()))
    call = draw.choice(
        (
            _Runs(os.system, f"touch {MARKER}"),
            _Runs(eval, f"open('{MARKER}', 'w')"),
            _Runs(list, _Runs(range, 10**9)),
            _Runs(nn.Linear, 10**5, 10**5),
            _Runs(bytearray, 10**10),
            _Runs(getattr, _Runs(__import__, "os"), "system"),
            _Runs(torch.Size, [10**9] * 9),
        )
    )
    vars(layer)[draw.choice(("weight", "forward", "stride", "_modules", "training", "extra"))] = (
        call
    )
    return _saved(lambda file: torch.save(draw.choice((model, {"model": model, "x": call})), file))


def _program(draw: random.Random, sound: dict[str, bytes]) -> bytes:
    if draw.randrange(4) == 0:
        return _damaged(sound["program"], draw)

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json") and draw.randrange(6):
            return content
        if not name.endswith(".json"):
            return _damaged(content, draw) if draw.randrange(3) == 0 and content else content
        document = json.loads(content)
        for _ in range(draw.choice((1, 1, 3))):
            document = _changed(document, draw)
        return json.dumps(document).encode()

    return _rezipped(sound["program"], change)


def _onnx(draw: random.Random, sound: dict[str, bytes]) -> bytes:
    way = draw.randrange(3)
    if way == 0:
        return _damaged(sound["onnx"], draw)
    model = onnx.load_from_string(sound["onnx"])
    graph = model.graph
    for _ in range(draw.choice((1, 2, 4))):
        node = draw.choice(graph.node)
        step = draw.randrange(7)
        if step == 0:
            node.op_type = draw.choice(
                ("Loop", "If", "Resize", "Expand", "Tile", "Conv", "Pad", "Reshape", "", "Scan")
            )
        elif step == 1 and node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice(
                [*node.output, "none", *(i.name for i in graph.initializer)]
            )
        elif step == 2:
            attribute = draw.choice(("group", "kernel_shape", "strides", "axis", "pads", "perm"))
            value: Any = draw.choice((0, -1, 2**40, 2**62))
            single = attribute in ("group", "axis")
            node.attribute.append(
                helper.make_attribute(attribute, value if single else [value] * 2)
            )
        elif step == 3:
            shape = [draw.choice((0, 1, 2**20, 2**40, -1)) for _ in range(draw.choice((1, 2, 4)))]
            graph.initializer.append(TensorProto(name="huge", dims=shape, data_type=1))
            if node.input:
                node.input[0] = "huge"
        elif step == 4:
            size = graph.input[0].type.tensor_type.shape.dim[draw.randrange(4)]
            size.dim_value = draw.choice((0, 2**20, 2**40, -5))
        elif step == 5:
            where = helper.make_tensor("i", TensorProto.INT64, [1], [1])
            values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
            dims = [draw.choice((1, 10**5, 10**9))] * 2
            graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, dims))
        else:
            node.name = node.domain = draw.choice(CODE).replace("\x00", "")[:100]
    return model.SerializeToString()


def _profile(draw: random.Random, sound: dict[str, bytes]) -> bytes:
    import yaml

    if draw.randrange(2):
        return _damaged(sound["profile"], draw)
    document = _changed(yaml.safe_load(sound["profile"]), draw)
    return yaml.safe_dump(document).encode()


def _npz(draw: random.Random, sound: dict[str, bytes]) -> bytes:
    if draw.randrange(2):
        return _damaged(sound["npz"], draw)
    arrays: dict[str, Any] = {
        draw.choice(("x", "y", "x_test", "a/../b")): draw.choice(
            (
                np.zeros((0, 3, 8, 8)),
                np.zeros((4, 3, 8, 8), "c16"),
                np.array(["text"]),
                np.full((9, 3, 8, 8), np.nan, "f4"),
                np.zeros((5, 1), "M8[s]"),
                np.float32(3),
                np.zeros((40, 10**7), "i1"),
            )
        )
        for _ in range(2)
    }
    return _saved(lambda file: np.savez_compressed(file, **arrays))


def _results(draw: random.Random, sound: dict[str, bytes]) -> bytes:
    lines = sound["results"].decode().splitlines()
    if draw.randrange(2):
        return _damaged(sound["results"], draw)
    at = draw.randrange(len(lines))
    lines[at] = json.dumps(_changed(json.loads(lines[at]), draw))
    return "\n".join(lines).encode()


MODEL = ["--profile", "raspberry-pi-4", "--input", "1x3x8x8"]
KINDS: dict[str, tuple[str, Callable[..., bytes], Callable[[str], list[str]]]] = {
    "pickle": ("net.pt", _pickle, lambda f: ["inspect", f, *MODEL]),
    "program": ("net.pt2", _program, lambda f: ["inspect", f, *MODEL[:2]]),
    "onnx": ("net.onnx", _onnx, lambda f: ["check", f, "--profile", "raspberry-pi-4"]),
    "profile": ("own.yaml", _profile, lambda f: ["check", "../sound.onnx", "--profile", f]),
    "npz": (
        "data.npz",
        _npz,
        lambda f: ["../sound.pt", *MODEL, "--rate", "0.1", "--data", f, "-o", "out"],
    ),
    "results": (
        "kit.jsonl",
        _results,
        lambda f: ["calibrate", "--from", f, "--ram-mb", "4096", "-o", "out.yaml"],
    ),
}


def sound_files(kinds: Sequence[str]) -> dict[str, bytes]:
    """One of each kind that nothing is wrong with, and those that these are tried with."""
    made: dict[str, bytes] = {"pickle": _saved(lambda file: torch.save(_net(), file))}
    made["profile"] = (_ROOT / "device_profiles" / "raspberry-pi-4.yaml").read_bytes()
    made["onnx"] = _exported()
    if "program" in kinds:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(_net(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=shapes)
        made["program"] = _saved(lambda file: torch.export.save(program, file))
    if "npz" in kinds:
        made["npz"] = _saved(lambda file: np.savez(file, x=_noise((32, 3, 8, 8))))
    if "results" in kinds:
        made["results"] = _measured()
    return made


def _exported() -> bytes:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder, "net.onnx")
        example = (torch.randn(1, 3, 8, 8),)
        torch.onnx.export(_net(), example, path, dynamo=True, verbose=False, external_data=False)
        return path.read_bytes()


def _measured() -> bytes:
    """What a kit measures here in a few seconds, each network told several times."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        kit = str(Path(folder, "kit.zip"))
        command_line(["calibrate", "--kit", kit])
        results = Path(folder, "results.jsonl")
        measuring = [sys.executable, kit, "--seconds", "5", "--accept-noise", "-o", str(results)]
        subprocess.run(measuring, check=True, capture_output=True)
        lines = results.read_text().splitlines()
    again = [line.replace('"network": "', f'"network": "{n}-') for n in range(4) for line in lines]
    return "\n".join([*lines, *(a for a in again if '"network"' in a)]).encode()


def tried(kind: str, seed: int, sound: dict[str, bytes], place: Path) -> Tried:
    """What went wrong with one file. place: an empty folder, which is left as it was."""
    name, make, words = KINDS[kind]
    content = make(random.Random(f"{kind} {seed}"), sound)
    return _tried(name, content, words(name), sound, place)


def passes(kind: str, sound: dict[str, bytes], place: Path) -> bool:
    """Whether the file that isn't damaged goes through: else nothing would be tried."""
    name, _, words = KINDS[kind]
    done = _tried(name, sound[kind], words(name), sound, place)
    return not done.wrong and done.status == 0


def _tried(
    name: str, content: bytes, words: list[str], sound: dict[str, bytes], place: Path
) -> Tried:
    (place / "sound.onnx").write_bytes(sound["onnx"])
    (place / "sound.pt").write_bytes(sound["pickle"])
    folder = place / "work"
    folder.mkdir()
    (folder / name).write_bytes(content)
    try:
        return run(words, folder)
    finally:
        shutil.rmtree(folder)


# -- running one -----------------------------------------------------------------------------------


def run(words: list[str], folder: Path) -> Tried:
    """What went wrong when a command ran in a folder of its own, its last line, and its seconds."""
    before = set(_tree(folder.parent))
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(words, folder)
    until = began + SECONDS * 2
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    status, took = done[1], time.monotonic() - began
    wrong = []
    own = tuple(f"{folder.name}/{name}" for name in ("out", ".facts", ".said"))
    facts = folder / ".facts"
    told = json.loads(facts.read_text()) if facts.exists() else {"peak": 0, "line": ""}
    for name in set(_tree(folder.parent)) - before:
        if MARKER in name:
            wrong.append("executed")
        elif not name.startswith(own):
            wrong.append(f"wrote {name}")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        wrong.append(
            "socket" if number == signal.SIGSYS else f"died by {signal.Signals(number).name}"
        )
    elif os.WEXITSTATUS(status) == 1:
        wrong.append("exit 1")
    if told["peak"] > MEMORY:
        wrong.append("over 2 GB")
    if took > SECONDS:
        wrong.append("over 60 s")
    ended = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
    return Tried(wrong, told["line"], took, ended)


def _tree(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob("*")]


def _child(words: list[str], folder: Path) -> None:
    os.chdir(folder)
    forbid_internet(kill=True)
    said = open(".said", "w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stdout = sys.stderr = said
    status = 1
    try:
        status = command_line(words)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        peak = max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        lines = Path(".said").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        Path(".said").unlink()
        Path(".facts").write_text(
            json.dumps({"peak": peak * 1024, "line": lines[-1][:200] if lines else ""})
        )
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for files that something is wrong with")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = options.kinds or list(KINDS)
    rows: list[dict[str, Any]] = (
        json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    )
    known = {(row["kind"], row["seed"]) for row in rows}
    sound = sound_files(kinds)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        for kind in kinds:
            if not passes(kind, sound, Path(scratch)):
                sys.exit(f"the sound {kind} is refused: nothing would be tried")
        for number in range(-(-options.count // len(kinds))):
            for kind in kinds:
                seed = options.seed + number
                if (kind, seed) in known:
                    continue
                done = tried(kind, seed, sound, Path(scratch))
                row = {"wrong": done.wrong, "line": done.line, "s": done.seconds}
                rows.append({"kind": kind, "seed": seed, "status": done.status, **row})
                if done.wrong:
                    print(kind, seed, done.wrong, done.line, flush=True)
                    if options.keep:
                        options.keep.mkdir(exist_ok=True)
                        name, make, _ = KINDS[kind]
                        content = make(random.Random(f"{kind} {seed}"), sound)
                        (options.keep / f"{seed}-{name}").write_bytes(content)
            if options.json:
                options.json.write_text(json.dumps(rows))
    for kind in kinds:
        of = [row for row in rows if row["kind"] == kind]
        found = Counter(w.split(" ")[0] for row in of for w in row["wrong"])
        refused = sum(bool(row["line"].startswith("edgeprune:")) for row in of)
        slowest = max((row["s"] for row in of), default=0.0)
        told = ", ".join(f"{w} {n}" for w, n in found.items()) or "nothing wrong"
        print(f"{kind:8} {len(of)} files, {refused} refused, slowest {slowest:.1f} s: {told}")


if __name__ == "__main__":
    main()
