"""The networks written out for the fits of the profiles have the sizes that are published."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("counting", "fit_networks", "fit_detectors"):
        if name not in before:
            sys.modules.pop(name, None)


def mmacs(build: Any, side: int) -> float:
    kernels = import_module("counting").kernels_of(build, side, None)
    return float(sum(kernel.macs for kernel in kernels)) / 1e6


@pytest.mark.parametrize(
    ("name", "side", "published"),
    [
        ("mobilenet_v1", 224, 568.7),
        ("proxylessnas", 224, 336.5),
        ("MobileNetSsd", 300, 1148.5),
        ("Yolov4Tiny", 416, 3453.9),
    ],
)
def test_a_classifier_or_detector_of_ncnn_has_its_macs(
    name: str, side: int, published: float
) -> None:
    build = getattr(import_module("fit_networks"), name)
    assert mmacs(build, side) == pytest.approx(published, rel=0.001)


@pytest.mark.parametrize(
    ("name", "sizes", "gflops"),
    [
        ("yolov8", (0.25, 0.33, 1024), 8.7),
        ("yolov8", (0.75, 0.67, 768), 78.9),
        ("yolov8", (1.0, 1.0, 512), 165.2),
        ("yolo11", (0.25, 0.5, 1024, False), 6.5),
        ("yolo11", (1.5, 1.0, 512, True), 194.9),
        ("yolov5n", (), 4.5),
        ("yolox_s", (), 26.8),
    ],
)
def test_a_yolo_has_its_published_gflops(name: str, sizes: tuple[Any, ...], gflops: float) -> None:
    build = getattr(import_module("fit_detectors"), name)
    assert 2 * mmacs(lambda: build(*sizes), 640) / 1000 == pytest.approx(gflops, rel=0.03)
