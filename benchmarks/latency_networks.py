"""The networks that the latency and memory models are tested on, as ONNX files made by EdgePrune.

    PYTHONPATH=. .venv/bin/python benchmarks/latency_networks.py FOLDER [NAME ...]

Each network as it is and with random, uneven widths; of some, many pruned variants, to test the
ranking. What is in FOLDER already isn't made again. Needs torchvision and timm (`make bench-env`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from zoo import declare_torchvision

declare_torchvision()
import timm  # noqa: E402
import torchvision  # noqa: E402

from edgeprune.coupling import Coupling, couple  # noqa: E402
from edgeprune.coupling.plan import Plan, keep_best  # noqa: E402
from edgeprune.export.onnx import export  # noqa: E402
from edgeprune.graph.inputs import ExampleInputs  # noqa: E402
from edgeprune.graph.trace import trace  # noqa: E402
from edgeprune.surgery.resize import resize  # noqa: E402

TORCHVISION = (
    "resnet18 resnet34 resnet50 resnext50_32x4d mobilenet_v2 mobilenet_v3_small "
    "mobilenet_v3_large densenet121 shufflenet_v2_x0_5 shufflenet_v2_x1_0 efficientnet_b0 "
    "efficientnet_b1 efficientnet_v2_s regnet_y_400mf regnet_x_800mf mnasnet1_0 squeezenet1_1 "
    "googlenet inception_v3 vgg11_bn alexnet swin_t convnext_tiny"
).split()
TIMM = (
    "vit_tiny_patch16_224 deit_small_patch16_224 mobilevit_xs ghostnet_100 mixnet_s mobileone_s0 "
    "repvgg_a0 resnetv2_50 cspresnet50 dla34 hardcorenas_a lcnet_100 tinynet_a fbnetc_100 "
    "ese_vovnet19b_dw poolformer_s12 edgenext_xx_small efficientformer_l1 levit_128 pit_ti_224 "
    "mixer_s16_224 resmlp_12_224 hrnet_w18_small selecsls42b rexnet_100 mobilenetv4_conv_small "
    "repghostnet_100 xcit_nano_12_p16_224"
).split()
#: Networks of which many variants are ranked: about as strongly pruned each, and light to heavy.
RANKED = ("resnet50", "mobilenet_v2", "vit_tiny_patch16_224", "densenet121", "efficientnet_b0")
VARIANTS = 12
LIGHTEST, HEAVIEST, SPREAD = 0.9, 0.35, 0.15
#: Widths come in one of these multiples, one a network; 1 takes whatever comes.
MULTIPLES = (4, 8, 16, 8)


def build(name: str) -> torch.nn.Module:
    """An untrained network; latency doesn't ask for weights."""
    torch.manual_seed(0)
    if name in TORCHVISION:
        options = {"aux_logits": False, "init_weights": False}
        inception = name in ("googlenet", "inception_v3")
        return torchvision.models.get_model(name, weights=None, **(options if inception else {}))
    return timm.create_model(name, pretrained=False)


def uneven(
    coupling: Coupling, seed: int, multiple: int, between: tuple[float, float] = (0.3, 0.95)
) -> Plan:
    """Each group keeps a share of its own, in whole multiples where it has them."""
    rng = np.random.default_rng(seed)
    counts = {}
    for group in coupling.groups:
        count = round(group.size * rng.uniform(*between))
        step = multiple if group.size >= 4 * multiple else 1
        counts[group.index] = min(max(round(count / step) * step, step), group.size)
    importance = [rng.random(group.size) for group in coupling.groups]
    return Plan(keep_best(importance, counts), frozenset())


def variants(name: str) -> dict[str, dict[str, Any]]:
    """What to call `uneven` with for each pruned variant: p0, p1, … with shares of 0.3 to 0.95,
    q0, q1, … around shares that fall."""
    first = sum(map(ord, name)) + 1
    count = VARIANTS if name in RANKED else 1
    plans = {f"p{i}": {"seed": first + i} for i in range(count)}
    if name in RANKED:
        for i, share in enumerate(np.linspace(LIGHTEST, HEAVIEST, VARIANTS)):
            between = (share - SPREAD, min(share + SPREAD, 1.0))
            plans[f"q{i}"] = {"seed": first + VARIANTS + i, "between": between}
    return {key: {**plan, "multiple": MULTIPLES[plan["seed"] % 4]} for key, plan in plans.items()}


def make(name: str, folder: Path) -> None:
    """Exports a network and its pruned variants to FOLDER."""
    side = 299 if name == "inception_v3" else 224
    paths = {folder / f"{name}-{suffix}.onnx": plan for suffix, plan in variants(name).items()}
    paths = {folder / f"{name}.onnx": None, **paths}
    if all(path.exists() for path in paths):
        return
    inputs = ExampleInputs((torch.randn(1, 3, side, side),), {})
    traced = trace(build(name).eval(), inputs)
    coupling = couple(traced)
    for path, plan in paths.items():
        if path.exists():
            continue
        module = traced.graph_module
        if plan is not None:
            module = resize(traced, coupling, uneven(coupling, **plan))
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            export(module, inputs, traced.dynamic_batch, Path(draft) / "model.onnx", {})
            onnx.load(Path(draft) / "model.onnx")
            (Path(draft) / "model.onnx").rename(path)
        print(path.name, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=[*TORCHVISION, *TIMM])
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in arguments.names:
        try:
            make(name, arguments.folder)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
