"""Accuracy after pruning, against Torch-Pruning at the same cost in the same run.

    PYTHONPATH=. python benchmarks/accuracy.py --data ../shared/data [--json FILE] [PART …]

Parts (all unless named): half, third, resnet20, datafree, datafree20, latency, epochs,
latency-epochs, third-epochs, curves (with a plot: --plot FILE; where --json FILE kept its rows, an
interrupted run goes on). CIFAR-10 networks with public weights, 1,024 unlabelled images for what
needs no training, 4,000 labelled ones for 10 epochs;
accuracy on 1,000 test images that take part in nothing. The peer is measured with each of its
data-free criteria; the best of them counts, as the test images see it, which favours it.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import edgeprune
from benchmarks import accuracy_curves as curves_of
from benchmarks import accuracy_peer as peer
from benchmarks.accuracy_networks import load
from edgeprune.calibration.named import load_profile
from edgeprune.cost import analytic as latency
from edgeprune.export.onnx import export
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.profiles.profile import Profile
from edgeprune.runtime.ort_subprocess import run_runner
from edgeprune.solve import latency_terms as terms
from edgeprune.solve import vectorized as compiled

EPOCHS = 10
#: A limit is in milliseconds of a machine that gets busier and calmer: what comes out further from
#: the share than this is asked for anew, so often. The peer's rates are searched by the same watch.
_AS_ASKED, _TRIES = 0.03, 3
Row = dict[str, Any]


class Bench:
    """The networks, the images and what was measured so far."""

    def __init__(self, data: Path, plot: Path, file: Path | None = None) -> None:
        """file: where the rows are kept; what it holds already counts as measured."""
        self.loaders, self.images = load(data)
        self.plot, self._file = plot, file
        self.example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.rows: list[Row] = json.loads(file.read_text()) if file and file.exists() else []

    def has(self, **row: Any) -> bool:
        """Whether a row of these entries is there already."""
        return any(row.items() <= known.items() for known in self.rows)

    def _keep(self, row: Row) -> None:
        self.rows.append(row)
        if self._file:
            self._file.write_text(json.dumps(self.rows, indent=1))

    def network(self, depth: int = 56) -> nn.Module:
        model: nn.Module = self.loaders.cifar_resnet(depth)
        return model

    def add(self, part: str, what: str, accuracy: float, base: float, **others: Any) -> None:
        """Prints and keeps one row."""
        row = {"part": part, "what": what, "accuracy": accuracy, "drop": base - accuracy, **others}
        self._keep(row)
        more = "  ".join(
            f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in others.items()
        )
        print(
            f"{part:15} {what:42} {accuracy:5.1f} %  drop {base - accuracy:5.1f}  {more}",
            flush=True,
        )

    def unreached(self, part: str, what: str, **others: Any) -> None:
        """Says that a peer has no model at the cost, at any of its rates."""
        self._keep({"part": part, "what": what, "reached": False, **others})
        print(f"{part:15} {what:42} doesn't come down to this cost at any rate", flush=True)


def multiply_accumulates() -> Profile:
    """A made-up device whose milliseconds are millions of multiply-accumulates."""
    path = Path(__file__).parent.parent / "device_profiles" / "raspberry-pi-4.yaml"
    raw = yaml.safe_load(path.read_text())
    raw.update(name="macs", title="one multiply-accumulate a nanosecond", channel_multiple=1)
    values = {"peak_gflops": 2.0, "memory_bandwidth_gb_s": 1e4, "bandwidth_efficiency": 1.0}
    for key, value in {**values, "launch_overhead_us": 1e-2}.items():
        raw[key]["value"] = value
    for kind in raw["efficiency"].values():
        kind["value"] = 1.0
    return Profile.model_validate(raw)


@contextmanager
def thin_channels_free() -> Iterator[None]:
    """Leaves what thin channels cost on real devices out of the formula."""
    modules: tuple[Any, ...] = (latency, terms, compiled)
    known = [module.EDGE_CHANNELS for module in modules]
    for module in modules:
        module.EDGE_CHANNELS = 0
    try:
        yield
    finally:
        for module, channels in zip(modules, known, strict=True):
            module.EDGE_CHANNELS = channels


def ours(
    bench: Bench, model: nn.Module, share: float, profile: Any = None, **options: Any
) -> tuple[edgeprune.Result, float]:
    """A model at a share of its cost (multiply-accumulates, or a device's latency), and the
    seconds that it took."""
    if profile is None:
        with thin_channels_free():
            return ours(bench, model, share, multiply_accumulates(), **options)
    whole = edgeprune.prune(model, bench.example, profile=profile, rate=0.0)
    limit = whole.report["before"]["latency_ms"] * share
    began = time.perf_counter()
    result = edgeprune.prune(
        model,
        bench.example,
        profile=profile,
        budgets=edgeprune.Budgets(latency_ms=limit),
        **options,
    )
    return result, time.perf_counter() - began


def scored_and_recovered(result: edgeprune.Result) -> float:
    """Seconds of scoring (with what settles the shape of losses) and recovery."""
    return sum(result.report["seconds"].get(step, 0.0) for step in ("score", "shape", "recover"))


def macs_left(result: edgeprune.Result) -> float:
    """The share of the multiply-accumulates that is left."""
    return float(result.report["after"]["macs"] / result.report["before"]["macs"])


def untrained(bench: Bench, part: str, share: float, depth: int = 56, data: bool = True) -> None:
    """A share of the multiply-accumulates, without training."""
    model, images = bench.network(depth), bench.images
    base = images.accuracy(model)
    samples = images.unlabelled() if data else None
    result, seconds = ours(bench, model, share, data=samples)
    bench.add(
        part,
        "edgeprune",
        images.accuracy(result.graph_module),
        base,
        macs=macs_left(result),
        score_recover_s=scored_and_recovered(result),
        whole_s=seconds,
        peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )
    whole = peer.macs(model, bench.example)
    for name in peer.CRITERIA:
        smaller = peer.pruned(
            model, bench.example, name, lambda m: peer.macs(m, bench.example) <= whole * share
        )
        if smaller is None:
            bench.unreached(part, f"Torch-Pruning, {name}")
            continue
        left = peer.macs(smaller, bench.example) / whole
        if data:
            smaller = peer.recalibrated(smaller, images.unlabelled())
        what = f"Torch-Pruning, {name}" + (", BN recalibrated" if data else "")
        bench.add(part, what, images.accuracy(smaller), base, macs=left)


def trained(bench: Bench, part: str, share: float) -> None:
    """A share of the multiply-accumulates, with epochs of training."""
    model, images = bench.network(), bench.images
    base = images.accuracy(model)
    result, seconds = ours(bench, model, share, data=images.labelled(), epochs=EPOCHS)
    bench.add(
        part,
        "edgeprune",
        images.accuracy(result.graph_module),
        base,
        macs=macs_left(result),
        whole_s=seconds,
    )
    whole = peer.macs(model, bench.example)

    def fits(smaller: nn.Module) -> bool:
        return peer.macs(smaller, bench.example) <= whole * share

    _peer_trained(
        bench, part, base, model, fits, lambda m: {"macs": peer.macs(m, bench.example) / whole}
    )


def _peer_trained(
    bench: Bench,
    part: str,
    base: float,
    model: nn.Module,
    fits: Callable[[nn.Module], bool],
    cost: Callable[[nn.Module], dict[str, float]],
    round_to: int | None = None,
) -> None:
    # The best of CRITERIA before training, its default, and what comes down to low latencies.
    for name in ("FPGM", "group norm", "LAMP"):
        smaller = peer.pruned(model, bench.example, name, fits, round_to)
        if smaller is None:
            bench.unreached(part, f"Torch-Pruning, {name}, fine-tuned")
            continue
        tuned = peer.fine_tuned(smaller, bench.images.labelled(), EPOCHS)
        bench.add(
            part,
            f"Torch-Pruning, {name}, fine-tuned",
            bench.images.accuracy(tuned),
            base,
            **cost(tuned),
        )


class Stopwatch:
    """Latency of models relative to one of them, in onnxruntime, one thread, batch 1."""

    def __init__(self, bench: Bench, model: nn.Module, folder: Path) -> None:
        self._example, self._folder, self._made = bench.example, folder, 0
        self._whole = self._file(model)

    def share(self, model: nn.Module) -> float:
        """The model's latency as a share of the first one's, timed alternately."""
        timed = run_runner(["compare", self._whole, self._file(model), "--threads", 1])
        return float(timed["b"]["latency_ms"] / timed["a"]["latency_ms"])

    def _file(self, model: nn.Module) -> Path:
        self._made += 1
        inputs = ExampleInputs((self._example,), {})
        graph = trace(model, inputs).graph_module
        folder = self._folder / str(self._made)
        folder.mkdir()
        return export(graph, inputs, True, folder / "model.onnx", {}).path


def by_latency(bench: Bench, part: str, share: float, epochs: int = 0) -> None:
    """A share of the latency that onnxruntime measures on this machine."""
    model, images = bench.network(), bench.images
    base = images.accuracy(model)
    data = images.labelled() if epochs else images.unlabelled()
    options: Row = {"epochs": epochs} if epochs else {}
    with tempfile.TemporaryDirectory() as scratch:
        watch = Stopwatch(bench, model, Path(scratch))
        asked = share
        for _ in range(_TRIES):
            result, seconds = ours(bench, model, asked, load_profile("host"), data=data, **options)
            taken = watch.share(result.graph_module)
            if abs(taken / share - 1) <= _AS_ASKED:
                break
            asked *= share / taken
        bench.add(
            part,
            f"edgeprune at {share:.2f}",
            images.accuracy(result.graph_module),
            base,
            latency=taken,
            whole_s=seconds,
        )

        def fits(smaller: nn.Module) -> bool:
            return watch.share(smaller) <= share * 1.01

        def cost(smaller: nn.Module) -> dict[str, float]:
            return {"latency": watch.share(smaller)}

        if epochs:
            _peer_trained(bench, part, base, model, fits, cost, round_to=8)
            return
        for name in peer.CRITERIA:
            smaller = peer.pruned(model, bench.example, name, fits, round_to=8)
            what = f"Torch-Pruning, {name}, BN recalibrated"
            if smaller is None:
                bench.unreached(part, what)
                continue
            mended = peer.recalibrated(smaller, images.unlabelled())
            bench.add(part, what, images.accuracy(mended), base, **cost(mended))


def curves(bench: Bench) -> None:
    """Accuracy against multiply-accumulates and against measured latency, without training. Goes on
    where an earlier run stopped that kept its rows (--json)."""
    model, images = bench.network(), bench.images
    base, whole = images.accuracy(model), peer.macs(model, bench.example)
    with tempfile.TemporaryDirectory() as scratch:
        watch = Stopwatch(bench, model, Path(scratch))

        def add(what: str, smaller: nn.Module, macs: float, **point: Any) -> None:
            costs = {"macs": macs, "latency": watch.share(smaller)}
            bench.add("curves", what, images.accuracy(smaller), base, **costs, **point)

        def add_ours(share: float, of: str) -> None:
            if bench.has(part="curves", what="edgeprune", of=of, asked=share):
                return
            profile = load_profile("host") if of == "latency" else None
            result, _ = ours(bench, model, share, profile, data=images.unlabelled())
            add("edgeprune", result.graph_module, macs_left(result), of=of, asked=share)

        def add_peer(name: str, share: float, of: str) -> None:
            what = f"Torch-Pruning, {name}, BN recalibrated"
            if bench.has(part="curves", what=what, of=of, asked=share):
                return
            smaller = peer.pruned(
                model,
                bench.example,
                name,
                lambda m: peer.macs(m, bench.example) <= whole * share,
                8 if of == "latency" else None,
            )
            if smaller is None:
                bench.unreached("curves", what, of=of, asked=share)
                return
            mended = peer.recalibrated(smaller, images.unlabelled())
            add(what, mended, peer.macs(smaller, bench.example) / whole, of=of, asked=share)

        for share in curves_of.MACS:
            add_ours(share, "macs")
            for name in peer.CRITERIA:
                add_peer(name, share, "macs")
                add_peer(name, share, "latency")
        for share in curves_of.LATENCY:
            add_ours(share, "latency")
    rows = [row for row in bench.rows if row["part"] == "curves" and "accuracy" in row]
    curves_of.plot(rows, base, bench.plot)


PARTS: dict[str, Callable[[Bench], None]] = {
    "half": lambda b: untrained(b, "half", 1 / 2),
    "third": lambda b: untrained(b, "third", 1 / 3),
    "resnet20": lambda b: untrained(b, "resnet20", 1 / 2, depth=20),
    "datafree": lambda b: untrained(b, "datafree", 1 / 2, data=False),
    "datafree20": lambda b: untrained(b, "datafree20", 1 / 2, depth=20, data=False),
    "latency": lambda b: [by_latency(b, "latency", s) for s in (2 / 3, 1 / 2)] and None,
    "epochs": lambda b: trained(b, "epochs", 1 / 2),
    "third-epochs": lambda b: trained(b, "third-epochs", 1 / 3),
    "latency-epochs": lambda b: by_latency(b, "latency-epochs", 1 / 2, EPOCHS),
    "curves": curves,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, default=Path("accuracy-curves.html"))
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        sys.exit(f"no part {unknown[0]}: choose from {', '.join(PARTS)}")
    bench = Bench(options.data, options.plot, options.json)
    for part in options.parts or PARTS:
        if part != "curves":  # those go on; anything else is measured anew
            bench.rows = [row for row in bench.rows if row["part"] != part]
        PARTS[part](bench)


if __name__ == "__main__":
    main()
