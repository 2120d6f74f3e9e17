"""TensorRT on a board, by its own `trtexec`: engines are built there, timed and profiled.

    with Remote.parse("ssh://nano@board.local").bare() as device:
        tensorrt = TensorRT(device, precision="fp16")
        engine = tensorrt.build(Path("model.onnx"), shapes={"x": [1, 3, 224, 224]})
        print(tensorrt.measure(engine)["latency_ms"])

Nothing but trtexec, a POSIX shell and tar is needed there. TensorRT's timing cache (which tactic
was how fast) is kept here between runs, as building takes minutes on a small board.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from edgeprune.core.cache import cache_folder
from edgeprune.core.errors import UserError
from edgeprune.profiles.profile import TENSORRT
from edgeprune.runtime.ssh import Remote
from edgeprune.runtime.trtexec_log import (
    Times,
    failed,
    managed_memory_mb,
    options_of,
    read_layers,
    read_times,
    reason,
    version_of,
)

PRECISIONS = ("fp32", "fp16", "int8")
#: Where JetPack puts trtexec, which is on no PATH.
USUAL_PLACE = "/usr/src/tensorrt/bin/trtexec"

_NOT_FOUND = 127
_WARM_UP_MS = 500
_MEASURE_SECONDS = 3
_COMPARE_SECONDS = 1
_COMPARE_ROUNDS = 3
_ALL_FIXED: Mapping[str, Sequence[int]] = {}
# Up to 8.3 trtexec takes 16 MB if it isn't told, with which many convolutions are slow; later ones
# take all that the device has.
_OLD_WORKSPACE_MB = 1024


@dataclass(frozen=True)
class Engine:
    """An engine on the board. name: its file there; shapes: of the inputs that are free in the
    file; size_mb: of its file, in MB of 10**6 bytes; precision: what its layers may compute in."""

    name: str
    shapes: Mapping[str, Sequence[int]]
    size_mb: float
    precision: str


class TensorRT:
    """TensorRT of a device that stays open.

    precision: what its layers may compute in besides fp32: fp32 (nothing else), fp16, int8. int8
    ranges aren't calibrated: its times are valid, what such an engine computes isn't. A file that
    is quantised itself (QuantizeLinear) is built in int8 whatever this says, with its own ranges.

    Everything here raises UserError, in one line: there is no trtexec, it is older than TensorRT
    8.0, the model can't be parsed or built, the connection broke.
    """

    def __init__(self, device: Remote, precision: str = "fp16") -> None:
        if precision not in PRECISIONS:
            raise UserError(f"TensorRT precision {precision}: choose from {', '.join(PRECISIONS)}")
        self._device = device
        self.precision = precision
        self._engines: dict[str, Engine] = {}
        self._managed_mb: dict[str, float | None] = {}
        self.program, text = self._find()
        found = version_of(text)
        if found is None:
            raise UserError(
                f"{self.program} on {device} doesn't say its version: TensorRT 8.0 or newer is "
                "needed (JetPack 4.6), or name another with ?trtexec=PATH"
            )
        #: Such as "8.2.1".
        self.version = ".".join(map(str, found))
        self._known = options_of(text)
        self._build_options = {precision: self._options_for_building(precision)}
        self._dla_options = self._options_for_dla()
        self._cache = _cache_file(device, self.version)
        self._cache_is_there = False

    def __str__(self) -> str:
        dla = self._device.address.dla_core
        core = "" if dla is None else f", DLA core {dla}"
        return f"{self._device} with TensorRT {self.version}, {self.precision}{core}"

    def build(
        self,
        model: Path,
        beside: Sequence[Path] = (),
        shapes: Mapping[str, Sequence[int]] = _ALL_FIXED,
    ) -> Engine:
        """The engine of an ONNX file. One that was built on this connection is used again.

        beside: the files that hold its weights. shapes: of the inputs that have free dimensions.
        """
        key = _content(model, beside, shapes)
        if key not in self._engines:
            self._engines[key] = self._built(key, model, beside, shapes)
        return self._engines[key]

    def measure(self, engine: Engine) -> dict[str, Any]:
        """An engine's figures: latency_ms, mean_ms, p99_ms and host_latency_ms (with copying inputs
        and outputs), noise and noisy, runs; peak_memory_mb, GPU memory that TensorRT manages, in MB
        of 10**6 bytes, None where its log doesn't tell; engine_size_mb; layers, each with name and
        mean time_ms; runtime, precision, dla_core."""
        times = self._timed(engine, _MEASURE_SECONDS)
        return {
            "latency_ms": times.latency_ms,
            "mean_ms": times.mean_ms,
            "p99_ms": times.p99_ms,
            "host_latency_ms": times.host_ms,
            "runs": times.runs,
            "noise": times.noise,
            "noisy": times.noisy,
            "peak_memory_mb": self.managed_memory_mb(engine),
            "runtime": f"{TENSORRT} {self.version}",
            "precision": engine.precision,
            "dla_core": self._device.address.dla_core,
            "engine_size_mb": engine.size_mb,
            "layers": self._layers(engine),
        }

    def compare(self, before: Engine, after: Engine) -> dict[str, Any]:
        """Both engines' latency, timed turn about in a few rounds: {"a", "b"}, each with the median
        latency_ms, and "ratio": the median over rounds of b's latency divided by a's."""
        pairs = []
        for _ in range(_COMPARE_ROUNDS):
            first = self._timed(before, _COMPARE_SECONDS)
            same = before.name == after.name
            pairs.append((first, first if same else self._timed(after, _COMPARE_SECONDS)))
            if same:
                break
        return {
            "a": {"latency_ms": median(a.latency_ms for a, _ in pairs)},
            "b": {"latency_ms": median(b.latency_ms for _, b in pairs)},
            "ratio": median(b.latency_ms / a.latency_ms for a, b in pairs),
        }

    def managed_memory_mb(self, engine: Engine) -> float | None:
        """GPU memory that TensorRT manages while the engine can run, in MB of 10**6 bytes; None
        where its log doesn't tell."""
        if engine.name not in self._managed_mb:
            self._timed(engine, _COMPARE_SECONDS)
        return self._managed_mb[engine.name]

    # -- what runs there ------------------------------------------------------------------------

    def _find(self) -> tuple[str, str]:
        """Where trtexec is there, and its help."""
        named = self._device.address.trtexec
        if named is not None and "/" in named and not named.startswith("/"):
            look = f'command -v "$HOME"/{shlex.quote(named)}'
        elif named is not None:
            look = f"command -v {shlex.quote(named)}"
        else:
            look = f"command -v trtexec || command -v {USUAL_PLACE}"
        script = f'found=$({look}) || exit {_NOT_FOUND}; echo "$found"; exec "$found" --help'
        status, text = self._device.shell(script)
        program, _, text = text.partition("\n")
        if status == _NOT_FOUND and not text:
            place = f"on its PATH or at {USUAL_PLACE}" if named is None else f"at {named}"
            raise UserError(
                f"there is no trtexec on {self._device}, {place}: install TensorRT there (it is "
                "part of JetPack), or name it with ?trtexec=PATH"
            )
        if failed(status, text):
            raise UserError(f"{program} on {self._device} does not run: {reason(status, text)}")
        return program.strip(), text

    def _built(
        self, key: str, model: Path, beside: Sequence[Path], shapes: Mapping[str, Sequence[int]]
    ) -> Engine:
        there = self._put(key, model, beside)
        name = f"{key}.engine"
        caching = "--timingCacheFile" in self._known
        if caching:
            self._bring_cache()
        # Not --buildOnly, which is called --skipInference from 8.6 on: one inference is short.
        brief = ["--warmUp=0", "--duration=0", "--iterations=1"]
        precision = "int8" if _is_quantised(model) else self.precision
        if precision not in self._build_options:
            self._build_options[precision] = self._options_for_building(precision)
        words = [f"--onnx={there}", f"--saveEngine={name}", *self._build_options[precision]]
        words += [f"--timingCacheFile={self._cache.name}"] if caching else []
        self._run([*words, *self._for_every_run(shapes), *brief])
        if caching:
            self._keep_cache()
        status, size = self._device.shell(f"wc -c < {name}")
        if status or not size.strip().isdigit():
            raise UserError(f"on {self._device}: trtexec wrote no engine")
        return Engine(name, dict(shapes), int(size) / 1e6, precision)

    def _put(self, key: str, model: Path, beside: Sequence[Path]) -> str:
        """Brings a model, in a folder of its own: another of the same name may be there."""
        where = f"{key}.onnx"
        self._device.put(model, *beside)
        files = shlex.join(f"./{file.name}" for file in (model, *beside))
        status, said = self._device.shell(f"mkdir -p {where} && mv -f {files} {where}/")
        if status:
            raise UserError(f"on {self._device}: {said.strip()}")
        return f"{where}/{model.name}"

    def _timed(self, engine: Engine, seconds: int) -> Times:
        timing = [f"--warmUp={_WARM_UP_MS}", f"--duration={seconds}", "--iterations=10"]
        words = [f"--loadEngine={engine.name}", "--exportTimes=times.json", *timing]
        log = self._run([*words, *self._for_every_run(engine.shapes)])
        self._managed_mb[engine.name] = managed_memory_mb(log)
        return read_times(self._read("times.json"), _WARM_UP_MS)

    def _layers(self, engine: Engine) -> list[dict[str, Any]]:
        """In a run of its own: the profiler waits for each layer, which makes the whole slower."""
        words = [f"--loadEngine={engine.name}", "--exportProfile=layers.json", "--dumpProfile"]
        self._run([*words, *self._for_every_run(engine.shapes), "--duration=1"])
        return read_layers(self._read("layers.json"))

    def _run(self, options: Sequence[str]) -> str:
        """trtexec's log. Raises UserError with what it says where it fails."""
        status, log = self._device.shell("exec " + shlex.join([self.program, *options]))
        if failed(status, log):
            raise UserError(f"on {self._device}: {reason(status, log)}")
        return log

    def _read(self, name: str) -> str:
        status, text = self._device.shell(f"cat {name}")
        if status:
            raise UserError(f"on {self._device}: {text.strip()}")
        return text

    # -- its options ----------------------------------------------------------------------------

    def _options_for_building(self, precision: str) -> list[str]:
        found = []
        if precision != "fp32":
            # int8 alone would leave fp32 for layers without it, where fp16 is faster.
            wanted = ["--fp16"] if precision == "fp16" else ["--int8", "--fp16"]
            if missing := next((o for o in wanted if o not in self._known), None):
                raise UserError(
                    f"TensorRT {self.version} on {self._device} has no {missing}: it can't be "
                    f"measured in {precision}"
                )
            found += wanted
        size = self._device.address.workspace_mb
        if "--memPoolSize" in self._known:
            return found if size is None else [*found, f"--memPoolSize=workspace:{size}"]
        return [*found, f"--workspace={size or _OLD_WORKSPACE_MB}"]

    def _options_for_dla(self) -> list[str]:
        core = self._device.address.dla_core
        if core is None:
            return []
        if self.precision == "fp32":
            raise UserError("a DLA core computes in fp16 or int8, and the profile says fp32")
        return [f"--useDLACore={core}", "--allowGPUFallback"]

    def _for_every_run(self, shapes: Mapping[str, Sequence[int]]) -> list[str]:
        """What is said again to a loaded engine."""
        words = [f"{_quoted(name)}:{'x'.join(map(str, shape))}" for name, shape in shapes.items()]
        return [*self._dla_options, *([f"--shapes={','.join(words)}"] if words else [])]

    # -- the timing cache -----------------------------------------------------------------------

    def _bring_cache(self) -> None:
        if not self._cache_is_there and self._cache.is_file():
            self._device.put(self._cache)
        self._cache_is_there = True

    def _keep_cache(self) -> None:
        """Where it can't be kept, the next run is slower and nothing else."""
        with suppress(OSError):
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with suppress(UserError):
                self._device.fetch(self._cache.name, self._cache)


def _cache_file(device: Remote, version: str) -> Path:
    """TensorRT itself refuses a cache of another GPU or version, and begins anew."""
    host = re.sub(r"[^\w.-]", "-", str(device))
    return cache_folder() / TENSORRT / f"{host}-{version}.timing"


def _is_quantised(model: Path) -> bool:
    """Whether a file has scales of its own: the op's name stands in it. It is not parsed here, as
    it may be anybody's."""
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return text.find(b"QuantizeLinear") >= 0


def _content(model: Path, beside: Sequence[Path], shapes: Mapping[str, Sequence[int]]) -> str:
    """A name for an engine: by what is in the files, and the shapes."""
    found = hashlib.sha256(repr(sorted((n, list(s)) for n, s in shapes.items())).encode())
    for file in (model, *beside):
        with file.open("rb") as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]


def _quoted(name: str) -> str:
    """An input's name as trtexec wants it where it holds what parts names from shapes."""
    return f"'{name}'" if re.search(r"[:,]", name) else name
