"""Predicted against measured latency of whole networks on this machine, single-threaded.

    PYTHONPATH=. .venv/bin/python benchmarks/host_profile.py [NETWORK ...] [--keep FOLDER]
        [--profile NAME] [--kinds] [--seconds S]

Exports torchvision models to ONNX, measures each with export/runner.py in a process of its own, and
compares with the latency that `edgeprune.device` predicts. None of the networks is used to fit the
profile. Needs torchvision (the `bench` extra).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import onnx

from edgeprune.device.from_onnx import kernel_graph
from edgeprune.device.kernels import KernelGraph
from edgeprune.device.profile import Profile, load_profile
from edgeprune.resources import export_folder

NETWORKS = (
    "resnet18",
    "mobilenet_v2",
    "densenet121",
    "shufflenet_v2_x1_0",
    "efficientnet_b0",
    "vit_b_16",
)


def export(name: str, path: Path) -> None:
    """Export an untrained torchvision model at 1x3x224x224; latency does not ask for weights."""
    import torch
    from zoo import declare_torchvision

    declare_torchvision()
    import torchvision

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.get_model(name, weights=None).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randn(1, 3, 224, 224),),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def measured_ms(path: Path, seconds: float) -> float:
    """The median latency in milliseconds, one thread, in a process without torch."""
    command = [sys.executable, str(export_folder() / "runner.py"), "measure", str(path)]
    done = subprocess.run(
        [*command, "--threads", "1", "--seconds", str(seconds)],
        capture_output=True,
        text=True,
    )
    result = json.loads(done.stdout)
    if "error" in result:
        raise SystemExit(f"{path}: {result['error']}")
    return float(result["latency_ms"])


def by_kind(graph: KernelGraph, profile: Profile) -> str:
    """Where the predicted milliseconds go, the largest first."""
    spent: defaultdict[str, float] = defaultdict(float)
    for kernel in graph.kernels:
        spent[kernel.kind] += kernel.latency_ms(profile, {})
    ranked = sorted(spent.items(), key=lambda item: -item[1])
    return ", ".join(f"{kind} {ms:.2f}" for kind, ms in ranked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--profile", default="host", help="default host")
    parser.add_argument("--keep", type=Path, help="folder for the exported models, used again")
    parser.add_argument("--seconds", type=float, default=3.0, help="per network; default 3")
    parser.add_argument("--kinds", action="store_true", help="show where predicted time goes")
    arguments = parser.parse_args()
    profile = load_profile(arguments.profile)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        ratios = []
        print(f"{'network':<22}{'predicted ms':>14}{'measured ms':>14}{'ratio':>8}")
        for name in arguments.networks:
            path = folder / f"{name}.onnx"
            if not path.is_file():
                export(name, path)
            graph = kernel_graph(onnx.load(path))
            predicted = graph.latency_ms(profile, {})
            # Two passes, and the better counts: the benches were timed in the same way.
            measured = min(measured_ms(path, arguments.seconds / 2) for _ in range(2))
            ratios.append(predicted / measured)
            print(f"{name:<22}{predicted:>14.2f}{measured:>14.2f}{ratios[-1]:>8.2f}", flush=True)
            if arguments.kinds:
                print(f"    {by_kind(graph, profile)}")
    errors = [100 * abs(ratio - 1) for ratio in ratios]
    print(
        f"error: mean {statistics.fmean(errors):.1f} %, worst {max(errors):.1f} % "
        f"(profile expects {profile.expected_error_percent.value:g} %)"
    )


if __name__ == "__main__":
    main()
