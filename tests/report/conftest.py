"""A report as a real run would give it: about 40 groups and 60 kernels, every budget met."""

from __future__ import annotations

from typing import Any

import pytest

from edgeprune.report.model import Report


def _groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            for conv in (1, 2):
                kept = width - 8 * ((3 * stage + 5 * block + 2 * conv) % (width // 10))
                name = f"layer{stage}.{block}.conv{conv}"
                groups.append({"name": name, "before": width, "after": kept})
        groups.append({"name": f"layer{stage}.0.downsample.0", "before": 4 * width, "after": width})
    groups.append({"name": "conv1", "before": 64, "after": 64, "frozen_by": "aten.view.default"})
    groups.append({"name": "fc", "before": 1000, "after": 1000, "frozen_by": "output"})
    for group in groups:
        group.setdefault("frozen_by", None)
    return groups


def _kernels(share: float) -> list[dict[str, Any]]:
    kernels = []
    for at in range(60):
        stage, block = divmod(at, 15)
        kind = ("conv", "pointwise", "elementwise")[at % 3]
        cost = (0.02 + 0.01 * ((at * 7) % 23)) * (1 - share * (0.5 + (at % 5) / 10))
        macs = 0 if kind == "elementwise" else round(4e7 * cost)
        name = f"layer{stage + 1}.{block}.{kind}"
        kernels.append(
            {
                "name": name,
                "kind": kind,
                "latency_ms": 0.0 if share and at == 41 else cost,
                "macs": macs,
                "bytes": round(1e6 * cost),
            }
        )
    return kernels


def _layers(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chain through the groups, each layer reading what the one before writes."""
    return [
        {
            "name": group["name"],
            "reads": [i - 1] if i else [],
            "writes": [i],
            "removed": group["name"].startswith("layer3.4"),
            "error": None if i % 5 == 0 else 0.01 * (i % 7),
        }
        for i, group in enumerate(groups)
    ]


def _plain() -> dict[str, Any]:
    return {
        "edgeprune": "0.1.0",
        "model": "resnet50.pt",
        "profile": "jetson-nano",
        "seed": 0,
        "budgets": {"latency_ms": 12.0, "memory_mb": 64.0, "size_mb": None},
        "before": {
            "params": 25_557_032,
            "macs": 4_089_184_256,
            "latency_ms": 23.91,
            "latency_source": "predicted",
            "peak_memory_mb": 57.7,
            "size_mb": 102.4,
            "metric": 80.86,
        },
        "after": {
            "params": 11_690_512,
            "macs": 1_814_073_344,
            "latency_ms": 11.62,
            "latency_source": "predicted",
            "peak_memory_mb": 29.4,
            "size_mb": 46.83,
            "metric": 79.92,
        },
        "solver": {
            "status": "feasible",
            "objective": 0.8,
            "bound": 0.704,
            "gap": 0.12,
            "seconds": 10.03,
        },
        "validation": {
            "max_abs_error": 4.77e-6,
            "max_rel_error": 5.2e-7,
            "samples": 8,
            "passed": True,
        },
        "surgery": {"oracle_max_abs_error": 2.4e-6, "exact": True, "oracle_max_rel_error": 3.1e-7},
        "groups": _groups(),
        "removed_layers": ["layer3.4", "layer3.5"],
        "met": True,
        "seconds": {"trace": 4.1, "couple": 0.6, "solve": 10.1, "recover": 64.0, "export": 8.2},
        "warnings": ["the machine was busy (load 3.1) while accuracy was measured"],
        "rate": {"asked": None, "achieved": 0.5426, "met": True},
        "method": "structured",
        "importance": "saliency",
        "precision": "fp32",
        "quantization": None,
        "module": "user class",
        "module_note": "",
        "input_shapes": {"x": [1, 3, 224, 224]},
        "remarks": ["input 1x3x224x224, from the model's default_cfg", "a fifth of the data tests"],
        "kernels_before": _kernels(0.0),
        "kernels_after": _kernels(0.8),
        "history": [{"step": 1, "params": 20_000_000, "removed": 0.2, "metric": 75.5}],
        "sparsity": None,
        "metric_name": "accuracy",
        "batch": 1,
        "files": {
            name: f"resnet50-jetson-nano/{name}"
            for name in ("model.onnx", "pruned.pt2", "report.json", "report.html")
        },
        "runtime": "tensorrt",
        "agreement": {
            "kind": "top1",
            "before_recovery": 12.0,
            "after": 91.0,
            "samples": 100,
            "lost": False,
            "least": 50.0,
            "made_up": False,
            "works_at_ms": None,
        },
        "obstacle": None,
        "latency_interval_ms": None,
        "device": "cpu",
        "origin": {
            "date": "2026-11-26T13:16:02+00:00",
            "command": "edgeprune resnet50.pt --profile jetson-nano --latency-ms 12",
            "versions": {"edgeprune": "0.1.0", "torch": "2.13.0"},
            "machine": "AMD EPYC, 2 cores, Linux x86_64",
        },
        "layers": _layers(_groups()),
        "memory": {
            "before_mb": [40.0 + (at * 5) % 18 for at in range(60)],
            "after_mb": [20.0 + (at * 5) % 9 for at in range(60)],
        },
        "prices": {"latency_ms": 0.05, "memory_mb": None, "size_mb": None, "rate": None},
        "onnx": {
            "opset": 18,
            "ir_version": 10,
            "batch": "dynamic",
            "batch_note": "",
            "free_sizes": {"H": "64..512"},
            "target": "",
            "unsupported_on_target": [],
        },
    }


@pytest.fixture
def plain() -> dict[str, Any]:
    """A whole report as plain values, to be changed in one place by each test."""
    return _plain()


@pytest.fixture
def report(plain: dict[str, Any]) -> Report:
    return Report.model_validate(plain)
