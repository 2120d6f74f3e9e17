"""How int8 is priced on this machine, by one figure and by kind of kernel, and what it takes.

    PYTHONPATH=. taskset -c 1 python benchmarks/int8_tables.py --json FILE [NETWORK …]

Networks of random weights, one thread. Each is exported, quantised as a file that is one of several
to be priced (no search for layers that stay float) and timed in float and in int8, turn about. The
profile is calibrated first, for SECONDS, and kept beside FILE. Each row of FILE is kept: an
interrupted run goes on. Six minutes on one core; needs timm and torchvision (`make bench-env`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.catalogue_convolutional import CifarResNet
from benchmarks.zoo import declare_torchvision
from edgeprune.calibration.fit import fit
from edgeprune.calibration.host import measure, write_profile
from edgeprune.export.file_cost import predicted
from edgeprune.export.onnx import export
from edgeprune.export.precision import in_precision
from edgeprune.graph.inputs import ExampleInputs
from edgeprune.graph.trace import trace
from edgeprune.profiles.profile import HOST, Profile, load_profile
from export import runner

SECONDS = 90.0
SECONDS_PER_FILE = 5.0
THREADS = 1

Row = dict[str, Any]


class DsCnn(nn.Module):
    """Keyword spotting, as in MLPerf Tiny."""

    def __init__(self) -> None:
        super().__init__()
        layers = [*_normed(1, 64, (10, 4), stride=2, padding=(5, 1))]
        for _ in range(4):
            layers += [*_normed(64, 64, 3, padding=1, groups=64), *_normed(64, 64, 1)]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def _normed(inputs: int, outputs: int, kernel: Any, **options: Any) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


def _torchvision(name: str) -> nn.Module:
    declare_torchvision()
    import torchvision

    made: nn.Module = torchvision.models.get_model(name, weights=None)
    return made


def _timm(name: str) -> nn.Module:
    declare_torchvision()
    import timm

    made: nn.Module = timm.create_model(name, pretrained=False)
    return made


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: _torchvision("resnet18"), (3, 224, 224)),
    "mobilenet_v2": (lambda: _torchvision("mobilenet_v2"), (3, 224, 224)),
    "lite0": (lambda: _timm("tf_efficientnet_lite0"), (3, 224, 224)),
    "resnet20": (CifarResNet, (3, 32, 32)),
    "dscnn": (DsCnn, (1, 49, 10)),
    # Beyond what the sample networks look like:
    "squeezenet1_1": (lambda: _torchvision("squeezenet1_1"), (3, 224, 224)),
    "vit_tiny": (lambda: _timm("vit_tiny_patch16_224"), (3, 224, 224)),
    "mobilenet_v3_small": (lambda: _torchvision("mobilenet_v3_small"), (3, 224, 224)),
}


def calibrated(path: Path) -> Profile:
    """This machine's profile, measured unless `path` has it."""
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            results = measure(Path(folder) / "results.jsonl", THREADS, SECONDS, True, int8=True)
        write_profile(fit(results, HOST, accept_noise=True), path)
    return load_profile(path)


def one(name: str, profile: Profile) -> Row:
    """A network's int8 over float: measured, and as each way predicts it."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = build().eval()
    inputs = ExampleInputs((torch.randn(1, *shape),), {})
    traced = trace(module, inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        plain = export(traced.graph_module, inputs, traced.dynamic_batch, path, {})
        in_float = predicted(plain, 1, profile).latency_ms
        sample = {plain.input_names[0]: inputs.tensors[0].numpy()}
        made = in_precision(plain, "int8", profile, [sample], final=False)
        by_figure = predicted(made, 1, profile.model_copy(update={"int8_kinds": None}))
        by_kind = predicted(made, 1, profile)
        timed = runner.compare(made.in_float.path, path, None, THREADS, SECONDS_PER_FILE)
    return {
        "network": name,
        "float_ms": timed["a"]["latency_ms"],
        "measured": timed["ratio"],
        "figure": by_figure.latency_ms / in_float,
        "table": by_kind.latency_ms / in_float,
    }


def told(rows: list[Row], profile: Profile) -> None:
    """The rows, and how far each way is off."""
    assert profile.int8 is not None and profile.int8_kinds is not None
    print(f"one figure {profile.int8.value:.2f} ({profile.int8.source})")
    for name, figure in profile.int8_kinds:
        print(f"{name:10} {figure.value:.2f} ({figure.source})")
    print(f"{'network':20}{'fp32 ms':>9}{'measured':>10}{'figure':>16}{'table':>16}")
    for row in rows:
        ways = "".join(f"{row[w]:9.2f} {_off(row, w):+6.0%}" for w in ("figure", "table"))
        print(f"{row['network']:20}{row['float_ms']:9.3g}{row['measured']:10.2f}{ways}")
    for way in ("figure", "table"):
        print(f"{way}: off by {mean(abs(_off(row, way)) for row in rows):.0%} on average")


def _off(row: Row, way: str) -> float:
    return float(row[way] / row["measured"] - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    file: Path = arguments.json
    profile = calibrated(file.with_suffix(".yaml"))
    rows: list[Row] = json.loads(file.read_text()) if file.exists() else []
    for name in arguments.networks:
        if all(row["network"] != name for row in rows):
            rows.append(one(name, profile))
            file.write_text(json.dumps(rows, indent=1))
    told([row for row in rows if row["network"] in arguments.networks], profile)


if __name__ == "__main__":
    main()
