"""Robot policies from lerobot's folder to the robot's loop.

    PYTHONPATH=. python benchmarks/policies.py --json FILE [small|default|smolvla|two-files …]

A folder with random weights is written by lerobot itself (`make bench-env`), pruned for a Jetson
Orin Nano, and its file run by export/recipes/policy.py: ACT for half its latency, Diffusion Policy
and SmolVLA (both as lerobot's defaults have them) by half of their parameters. What counts:

relative_error: how far the files' chunk is from the pruned policy's, as a share of the largest
action. Of ACT and Diffusion Policy that is lerobot's own `select_action` or `predict_action_chunk`
on the pruned network, with lerobot's steps before and after it, and the same noise. lerobot's
SmolVLA can't run with fewer heads in some layers than in others: there it is the pruned graph in
PyTorch, and `unpruned_error` is how far ours, unpruned, is from lerobot's own chunk.

two-files: a small Diffusion Policy for 60 % of what it takes on this machine. alone_to_limit: what
is computed once plus a step as often as there are steps, each file timed alone by export/runner.py,
as a share of the limit, three times over. chunk_to_limit: the same of both files run as they are
for a chunk, one behind the other, where they take each other's caches.

seconds, peak_memory_gb: of loading and pruning in a process of their own (10**9 bytes, resident).
Each row of FILE is kept: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgeprune
from benchmarks.policy_folders import CASES, Case, written
from edgeprune.calibration.named import load_profile
from edgeprune.export.loop_parts import ONCE, STEP
from edgeprune.loading.load import load
from edgeprune.loading.policies.schedule import denoised
from edgeprune.loading.torchvision_compat import with_operators
from edgeprune.profiles.profile import HOST
from edgeprune.runtime.ort_subprocess import measure
from export.recipes.policy import Policy
from export.runner import bind, open_session
from export.stopwatch import time_alone

PROFILE, OBSERVATIONS = "jetson-orin-nano", 3
SHARE, REPEATS = 0.6, 3  # of two-files
WORDS = ("observation.language.tokens", "observation.language.attention_mask")


def one(name: str) -> dict[str, Any]:
    """One policy, all the way."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "policy", Path(scratch) / "out"
        # In a process of its own, whose memory isn't counted.
        subprocess.run([sys.executable, __file__, "--write", name, str(folder)], check=True)
        began = time.perf_counter()
        loaded = load(str(folder))
        inputs = loaded.module.dummy_inputs
        asked: dict[str, Any] = {"rate": 0.5}
        if case.kind == "act":
            whole = edgeprune.prune(loaded.module, inputs, PROFILE, rate=0.0, data="none").report
            asked = {"budgets": edgeprune.Budgets(latency_ms=whole["before"]["latency_ms"] / 2)}
        result = edgeprune.prune(loaded.module, inputs, PROFILE, data="none", output=out, **asked)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        report = result.report
        again = Path(scratch) / "again"
        policy, before, after = with_operators(lambda: written(again, case))
        compared = {"act": _act, "diffusion": _diffusion, "smolvla": _smolvla}[case.kind]
        errors = compared(case, result, out, (policy, before, after), loaded.module)
        files = sorted(p for p in out.glob("*.onnx"))
        return {
            "case": name,
            "parameters": report["before"]["params"],
            "kept": report["after"]["params"] / report["before"]["params"],
            "latency_ms": [report[k]["latency_ms"] for k in ("before", "after")],
            "size_mb": [report[k]["size_mb"] for k in ("before", "after")],
            "met": report["met"],
            "module": report["module"],
            **errors,
            "files_mb": {file.name: round(file.stat().st_size / 1e6, 1) for file in files},
            "seconds": round(seconds),
            "peak_memory_gb": round(peak, 2),
        }


def two_files(name: str) -> dict[str, Any]:
    """One budget over two files, on this machine."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole, out = (Path(scratch) / each for each in ("policy", "whole", "out"))
        with_operators(lambda: written(folder, CASES[name]))
        began = time.perf_counter()
        module = load(str(folder)).module
        inputs, steps = module.dummy_inputs, module.loop.times
        threads = load_profile(HOST).threads or 1
        edgeprune.prune(module, inputs, HOST, rate=0.0, data="none", output=whole)
        limit = SHARE * min(_alone_ms(whole, steps, threads) for _ in range(REPEATS))
        budgets = edgeprune.Budgets(latency_ms=limit)
        report = edgeprune.prune(module, inputs, HOST, budgets, data="none", output=out).report
        seconds = time.perf_counter() - began
        alone = [_alone_ms(out, steps, threads) for _ in range(REPEATS)]
        chunk = [_chunk_ms(out, steps, threads) for _ in range(REPEATS)]
        return {
            "case": name,
            "steps": steps,
            "threads": threads,
            "kept": report["after"]["params"] / report["before"]["params"],
            "latency_ms": [report[k]["latency_ms"] for k in ("before", "after")],
            "limit_ms": limit,
            "met": report["met"],
            "alone_ms": alone,
            "alone_to_limit": [ms / limit for ms in alone],
            "chunk_to_limit": [ms / limit for ms in chunk],
            "seconds": round(seconds),
        }


def _alone_ms(out: Path, steps: int, threads: int) -> float:
    once, step = (measure(out / name, threads)["latency_ms"] for name in (ONCE, STEP))
    return float(once + steps * step)


def _chunk_ms(out: Path, steps: int, threads: int) -> float:
    once, step = (bind(open_session(out / name, threads)) for name in (ONCE, STEP))

    def chunk() -> None:
        for run in (once, *[step] * steps):
            run()

    return float(time_alone(chunk)["latency_ms"])


def _seen(case: Case, seed: int, shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ["observation.state", *(f"observation.{camera}" for camera in case.cameras)]
    sizes = {"observation.state": (case.joints,), **dict.fromkeys(names[1:], (3, *case.side))}
    found = {name: torch.rand(sizes[name], generator=generator) for name in names}
    return {**found, **{word: shapes[word][0] for word in WORDS if word in shapes}}


def _arrays(seen: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in seen.items()}


def _apart(made: Any, wanted: Any) -> float:
    return float(np.abs(np.asarray(made) - np.asarray(wanted)).max() / np.abs(wanted).max())


def _act(
    case: Case, result: Any, out: Path, lerobots: tuple[Any, Any, Any], module: Any
) -> dict[str, float]:
    """The first actions of select_action, over some observations."""
    policy, before, after = lerobots
    policy.model = result.module.network
    runner, error = Policy(out / "model.onnx", policy.config.n_action_steps), 0.0
    for seed in range(OBSERVATIONS):
        seen = _seen(case, seed, {})
        policy.reset()
        wanted = [after(policy.select_action(before(dict(seen))))[0] for _ in range(5)]
        runner.reset()
        made = [runner.select_action(_arrays(seen)) for _ in range(5)]
        error = max(error, _apart(np.stack(made), np.stack([a.numpy() for a in wanted])))
    return {"relative_error": error}


def _diffusion(
    case: Case, result: Any, out: Path, lerobots: tuple[Any, Any, Any], module: Any
) -> dict[str, float]:
    """The chunk after two observations, from the same noise."""
    from lerobot.policies.utils import populate_queues

    policy, before, after = lerobots
    policy.diffusion = result.module.network
    loop = module.loop
    shape, error = loop.schedule["shape"], 0.0
    policy.reset()
    runner = Policy(out)
    for seed in range(OBSERVATIONS):
        seen = _seen(case, seed, {})
        batch = {k: v for k, v in before(dict(seen)).items() if v is not None}
        cameras = [batch[name] for name in policy.config.image_features]
        batch["observation.images"] = torch.stack(cameras, dim=-4)
        policy._queues = populate_queues(policy._queues, batch)
        first = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)  # lerobot's steps draw their own noise from here
        wanted = after(policy.predict_action_chunk(batch, noise=first))[0].numpy()
        torch.manual_seed(seed)
        fresh = [torch.randn(1, *shape)[0] for _ in range(loop.times)]
        noise = torch.stack([first[0], *fresh])
        error = max(error, _apart(runner.chunk(_arrays(seen), noise.numpy()), wanted))
    return {"relative_error": error}


def _smolvla(
    case: Case, result: Any, out: Path, lerobots: tuple[Any, Any, Any], module: Any
) -> dict[str, float]:
    """The chunk of the files against the pruned graph's, and ours unpruned against lerobot's."""
    policy, before, after = lerobots
    loop, runner = module.loop, Policy(out)
    found = {"relative_error": 0.0, "unpruned_error": 0.0}
    for seed in range(OBSERVATIONS):
        seen = _seen(case, seed, module.dummy_inputs)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(1 + loop.times, *loop.schedule["shape"], generator=generator)
        wanted = _chunk(result.graph_module, seen, noise, loop)
        made = runner.chunk(_arrays(seen), noise.numpy())
        found["relative_error"] = max(found["relative_error"], _apart(made, wanted))
        batch = {k: v for k, v in before(dict(seen)).items() if v is not None}
        batch |= {word: seen[word][None] for word in WORDS}
        own = after(policy.predict_action_chunk(batch, noise=noise[:1]))[0].numpy()
        ours = _chunk(module, seen, noise, loop)
        found["unpruned_error"] = max(found["unpruned_error"], _apart(ours, own))
    return found


def _chunk(module: Any, seen: dict[str, torch.Tensor], noise: torch.Tensor, loop: Any) -> Any:
    fed = {name.replace(".", "_"): tensor[None] for name, tensor in seen.items()}

    def step(x: torch.Tensor, time: float) -> torch.Tensor:
        with torch.no_grad():
            made = module(**fed, sample=x, timestep=torch.tensor([int(time)]))
        prediction: torch.Tensor = made["prediction"]
        return prediction

    return denoised(step, loop.schedule, noise[:, None])[0].numpy()


def main() -> None:
    """Runs what FILE doesn't have yet, each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", nargs=2, metavar=("CASE", "FOLDER"))
    parser.add_argument("--one", choices=CASES)
    words = parser.parse_args()
    if words.write:
        with_operators(lambda: written(Path(words.write[1]), CASES[words.write[0]]))
        return
    if words.one:
        print(json.dumps((two_files if words.one == "two-files" else one)(words.one)))
        return
    if words.json is None:
        parser.error("--json FILE is needed")
    rows = json.loads(words.json.read_text()) if words.json.exists() else []
    for case in words.cases or CASES:
        if case not in {row["case"] for row in rows}:
            command = [sys.executable, __file__, "--one", case]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.strip().splitlines()[-1]))
            words.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
