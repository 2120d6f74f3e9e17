"""Robot policies from lerobot's folder to the robot's loop.

    PYTHONPATH=. python benchmarks/policies.py --json FILE [small|default …]

A folder of ACT with random weights is written by lerobot itself (`make bench-env`), pruned for half
its latency on a Jetson Orin Nano, and its file run by export/recipes/policy.py. What counts: how
far the file's chunk is from what the pruned policy's own `select_action` gives, with lerobot's own
steps before and after it, as a share of the largest action; and the whole command's time. "default"
is lerobot's ACT (51.6 M parameters, two cameras of 640×480). Each row of FILE is kept: an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgeprune
from edgeprune.loading.load import load
from edgeprune.loading.policies.folder import _without_its_neighbours
from edgeprune.loading.torchvision_compat import with_operators
from export.recipes.policy import Policy

PROFILE, JOINTS, OBSERVATIONS = "jetson-orin-nano", 14, 3
SMALL = {
    "dim_model": 64, "n_heads": 4, "dim_feedforward": 128, "chunk_size": 10, "n_action_steps": 10,
}  # fmt: skip
CASES: dict[str, tuple[tuple[int, int], tuple[str, ...], dict[str, Any]]] = {
    "small": ((96, 96), ("top",), SMALL),
    "default": ((480, 640), ("top", "wrist"), {}),
}


def written(
    folder: Path, side: tuple[int, int], cameras: tuple[str, ...], settings: dict[str, Any]
) -> tuple[Any, Any, Any]:
    """An ACT policy as lerobot saves it, and its own steps before and after."""
    _without_its_neighbours()
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.act.processor_act import make_act_pre_post_processors

    torch.manual_seed(0)
    names = [f"observation.images.{camera}" for camera in cameras]
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,)),
            **{name: PolicyFeature(FeatureType.VISUAL, (3, *side)) for name in names},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        pretrained_backbone_weights=None,
        device="cpu",
        **settings,
    )
    policy = ACTPolicy(config).eval()
    for parameter in policy.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    statistics = {
        name: {"mean": torch.rand(shape), "std": torch.rand(shape) + 0.3}
        for name, shape in (
            ("observation.state", (JOINTS,)),
            ("action", (JOINTS,)),
            *((name, (3, 1, 1)) for name in names),
        )
    }
    before, after = make_act_pre_post_processors(config, statistics)
    for each in (policy, before, after):
        each.save_pretrained(folder)
    file = folder / "config.json"
    # Some releases of draccus leave out which policy it is.
    file.write_text(json.dumps({"type": "act", **json.loads(file.read_text())}))
    return policy, before, after


def one(case: str) -> dict[str, Any]:
    """One policy, all the way."""
    side, cameras, settings = CASES[case]
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch) / "policy", Path(scratch) / "out"
        policy, before, after = with_operators(lambda: written(folder, side, cameras, settings))
        began = time.perf_counter()
        loaded = load(str(folder))
        inputs = loaded.module.dummy_inputs
        whole = edgeprune.prune(loaded.module, inputs, PROFILE, rate=0.0, data="none")
        seconds_whole = time.perf_counter() - began
        began = time.perf_counter()
        budget = edgeprune.Budgets(latency_ms=whole.report["before"]["latency_ms"] / 2)
        result = edgeprune.prune(loaded.module, inputs, PROFILE, budget, data="none", output=out)
        seconds = time.perf_counter() - began
        report = result.report
        policy.model = result.module.network
        runner, error = Policy(out / "model.onnx", policy.config.n_action_steps), 0.0
        for seed in range(OBSERVATIONS):
            generator = torch.Generator().manual_seed(seed)
            seen = {n: torch.rand(x.shape, generator=generator)[0] for n, x in inputs.items()}
            policy.reset()
            wanted = [after(policy.select_action(before(dict(seen))))[0] for _ in range(5)]
            runner.reset()
            arrays = {name: tensor.numpy() for name, tensor in seen.items()}
            made = [runner.select_action(arrays) for _ in range(5)]
            want = np.stack([action.numpy() for action in wanted])
            error = max(error, float(np.abs(np.stack(made) - want).max() / np.abs(want).max()))
        return {
            "case": case,
            "parameters": report["before"]["params"],
            "kept": report["after"]["params"] / report["before"]["params"],
            "latency_ms": [report[k]["latency_ms"] for k in ("before", "after")],
            "met": report["met"],
            "module": report["module"],
            "relative_error": error,
            "seconds": round(seconds),
            "seconds_unpruned": round(seconds_whole),
        }


def main() -> None:
    """Runs what FILE doesn't have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path, required=True)
    words = parser.parse_args()
    rows = json.loads(words.json.read_text()) if words.json.exists() else []
    for case in words.cases or CASES:
        if case not in {row["case"] for row in rows}:
            rows.append(one(case))
            words.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
