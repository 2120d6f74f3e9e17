"""Predicted against measured latency of whole networks on this machine, one thread.

    PYTHONPATH=. .venv/bin/python benchmarks/latency_networks.py FOLDER     (makes the networks)
    .venv/bin/edgeprune calibrate -o this-machine.yaml                      (ten minutes)
    PYTHONPATH=. .venv/bin/python benchmarks/latency_model.py FOLDER --profile this-machine.yaml

None of the networks is in the calibration. Each is run in bursts, turn about with its variants and
with the calibration's reference network, in several passes over all of them; a pass's median
counts as it would be with the reference at the speed that it had in the calibration (shared
machines change their speed by tens of percent from minute to minute), the figures as measured are
given beside.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from scipy.stats import spearmanr

from edgeprune.calibration.sample_blocks import REFERENCE, reference
from edgeprune.cost.onnx_reader import kernel_graph
from edgeprune.profiles.profile import Profile, load_profile
from export import runner

BURST, FEWEST_ROUNDS, PREDICTIONS = 3, 4, 5


def measure(paths: list[Path], beside: Any, seconds: float) -> list[tuple[float, float]]:
    """Milliseconds of each network and of the reference beside them, all run turn about.

    A network's time is its median share of a round times the round's: the machine's speed changes
    from round to round, for variants of one network alike.
    """
    steps = [runner.bind(runner.open_session(path)) for path in paths]
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds * len(steps) or len(rounds) < FEWEST_ROUNDS:
        rounds.append([_burst(run) for run in (*steps, beside)])
    times = np.array(rounds)
    own, around = times[:, :-1], times[:, -1]
    whole = np.median(own, axis=1)
    shares = np.median(own / whole[:, None], axis=0)
    usual = float(np.median(around))
    return [(float(share * np.median(whole / around) * usual), usual) for share in shares]


def _burst(run: Any) -> float:
    """The median of a few runs in a row, in milliseconds."""
    run()  # with the caches full of what ran before, as they aren't in use
    times = []
    for _ in range(BURST):
        began = time.perf_counter()
        run()
        times.append((time.perf_counter() - began) * 1e3)
    return float(np.median(times))


def family(name: str) -> str:
    """The network that a variant (`latency_networks.variants`) is of."""
    return re.sub(r"-[pq]\d+$", "", name)


def passes(paths: list[Path], count: int, seconds: float, cache: Path | None) -> dict[str, Any]:
    """For each file, (its ms, the reference's ms) of each pass."""
    done = json.loads(cache.read_text()) if cache and cache.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(reference(), Path(folder) / REFERENCE)
        beside = runner.bind(runner.open_session(Path(folder) / REFERENCE))
    families: dict[str, list[Path]] = {}
    for path in paths:
        families.setdefault(family(path.stem), []).append(path)
    for turn in range(count):
        for members in families.values():
            missing = [p for p in members if len(done.setdefault(p.stem, [])) <= turn]
            if not missing:
                continue
            for path, found in zip(missing, measure(missing, beside, seconds), strict=True):
                done[path.stem].append(found)
            if cache:
                cache.write_text(json.dumps(done))
    return done


def predict(path: Path, profile: Profile) -> tuple[float, float]:
    """(milliseconds predicted, milliseconds that predicting took, the file being loaded)."""
    model = onnx.load(path)
    times = []
    for _ in range(PREDICTIONS):
        began = time.process_time()
        ms = kernel_graph(model, profile.fusion).latency_ms(profile, {})
        times.append((time.process_time() - began) * 1e3)
    return ms, float(np.median(times))


def summary(name: str, errors: list[float], raw: list[float]) -> None:
    within = statistics.fmean(abs(e) <= 0.1 for e in errors)
    raw_within = statistics.fmean(abs(e) <= 0.1 for e in raw)
    print(
        f"{name:<10} {len(errors):3d} networks: median error "
        f"{100 * statistics.median(map(abs, errors)):.1f} %, mean "
        f"{100 * statistics.fmean(map(abs, errors)):.1f} %, within 10 %: {within:.0%}, bias "
        f"{100 * statistics.median(errors):+.1f} %  (as measured: median "
        f"{100 * statistics.median(map(abs, raw)):.1f} %, within 10 %: {raw_within:.0%})"
    )


def ranking(
    what: str,
    names: list[str],
    guess: Mapping[str, float],
    truth: Mapping[str, float],
    halves: Mapping[str, list[float]],
) -> None:
    """Prints how well variants are ranked, and how well two halves of the measurement agree."""
    found = spearmanr([guess[n] for n in names], [truth[n] for n in names]).statistic
    again = spearmanr(*zip(*(halves[n] for n in names), strict=True)).statistic
    times = [truth[n] for n in names]
    print(
        f"ranking of {what} ({max(times) / min(times):.2f} x from fastest to slowest): Spearman "
        f"{found:.3f} (half of the passes against the others: {again:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="host")
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="a network and pass")
    parser.add_argument("--cache", type=Path, help="measurements, to go on with")
    parser.add_argument("names", nargs="*", help="only these files' stems")
    arguments = parser.parse_args()

    profile = load_profile(arguments.profile)
    paths = [p for p in sorted(arguments.folder.glob("*.onnx"))]
    paths = [p for p in paths if not arguments.names or p.stem in arguments.names]
    measured = passes(paths, arguments.passes, arguments.seconds, arguments.cache)
    usual = profile.calibration.reference_ms if profile.calibration else None
    errors: dict[str, float] = {}
    raw: dict[str, float] = {}
    truth: dict[str, float] = {}
    halves: dict[str, list[float]] = {}
    guess: dict[str, float] = {}
    took = []
    print(f"{'network':<34}{'predicted':>10}{'measured':>10}{'error':>8}{'raw':>8}  interval")
    for path in paths:
        name = path.stem
        ms, cost = predict(path, profile)
        took.append(cost)
        found = measured[name][: arguments.passes]
        guess[name] = ms
        times = [m * (usual / r if usual else 1) for m, r in found]
        truth[name] = statistics.median(times)
        halves[name] = [statistics.median(times[half::2] or times) for half in (0, 1)]
        errors[name] = ms / truth[name] - 1
        raw[name] = ms / statistics.median(m for m, _ in found) - 1
        low, high = profile.latency_interval_ms(ms)
        mark = "" if low <= truth[name] <= high else "outside"
        print(
            f"{name:<34}{ms:>10.2f}{truth[name]:>10.2f}{errors[name]:>+8.1%}{raw[name]:>+8.1%}  "
            f"{low:.2f}-{high:.2f} {mark}"
        )
    kinds = {
        "originals": [n for n in errors if n == family(n)],
        "pruned": [n for n in errors if n == f"{family(n)}-p0"],
        "together": [n for n in errors if n in (family(n), f"{family(n)}-p0")],
    }
    for kind, names in kinds.items():
        if names:
            summary(kind, [errors[n] for n in names], [raw[n] for n in names])
    for name in kinds["originals"]:
        for letter, strengths in (("p", "alike in strength"), ("q", "light to heavy")):
            variants = [n for n in errors if n.startswith(f"{name}-{letter}")]
            if len(variants) > 5:
                ranking(f"{len(variants)} {name}, {strengths}", variants, guess, truth, halves)
    inside = [
        profile.latency_interval_ms(guess[n])[0]
        <= truth[n]
        <= profile.latency_interval_ms(guess[n])[1]
        for n in kinds["together"]
    ]
    print(f"inside the 90 % interval: {statistics.fmean(inside):.0%}")
    print(
        f"predicting one network: median {statistics.median(took):.0f} ms, worst {max(took):.0f} ms"
    )


if __name__ == "__main__":
    main()
