"""Real checkpoints of ultralytics: loaded, pruned to half, put back into their class.

    YOLO_CONFIG_DIR=/tmp/yolo PYTHONPATH=.:FOLDER python benchmarks/yolo.py --json FILE [NAME …]

FOLDER holds ultralytics (AGPL; no dependency of ours) and what it needs: pip install --no-deps
--target FOLDER ultralytics opencv-python-headless ultralytics-thop polars polars-runtime-32 psutil
matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six. Each network is made
by its own YAML file with random weights and saved as its trainer does: half precision, under `ema`
(best.pt) and under `model` (last.pt, fused). What counts: the command's exit status and verdicts,
whether the class follows, whether its own `predict` runs on it, and how far the file is from the
class that was put back, at a batch of 1 and of 3. Each row of FILE is kept.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

import edgeprune
from edgeprune.loading.load import load
from edgeprune.loading.torchvision_compat import with_operators

NAMES = ("yolov5n", "yolov8n", "yolo11n", "yolov8n-seg")
SIZE, RATE = 160, 0.5


def saved(name: str, folder: Path, fused: bool) -> Path:
    """A checkpoint as ultralytics' trainer leaves it."""
    from ultralytics.nn import tasks

    torch.manual_seed(0)
    kind = tasks.SegmentationModel if name.endswith("-seg") else tasks.DetectionModel
    model = kind(f"{name}.yaml", verbose=False).eval()
    task = "segment" if kind is tasks.SegmentationModel else "detect"
    model.args = {"imgsz": SIZE, "task": task}
    if fused:
        model = model.fuse(verbose=False)
    held = copy.deepcopy(model).half()
    file = folder / "best.pt"
    names = ("model", "ema") if fused else ("ema", "model")
    torch.save({"epoch": -1, names[0]: held, names[1]: None, "train_args": model.args}, file)
    return file


def one(name: str, fused: bool) -> dict[str, Any]:
    """One checkpoint, all the way."""
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file = saved(name, folder, fused)
        began = time.perf_counter()
        loaded = load(str(file), trust=True)
        x = torch.rand(1, 3, SIZE, SIZE)
        out = folder / "out"
        result = edgeprune.prune(
            loaded.module, x, "raspberry-pi-5", rate=RATE, data="none", output=out
        )
        seconds = time.perf_counter() - began
        session = onnxruntime.InferenceSession(out / "model.onnx")
        errors = []
        for batch in (1, 3):
            x = torch.rand(batch, 3, SIZE, SIZE)
            (got, *_) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            with torch.no_grad():
                want = result.module(x)
            want = (want[0] if isinstance(want, tuple) else want).numpy()
            errors.append(float(np.abs(got - want).max() / np.abs(want).max()))
        for part in result.module.modules():
            if getattr(part, "export", None) is True:
                part.export = False
        yolo = YOLO(str(file))
        yolo.model = result.module
        picture = np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)
        # A graph that stands in for one of its modules takes the size that was traced alone.
        found = yolo.predict(picture, imgsz=SIZE, rect=False, verbose=False)
        report = result.report
        return {
            "name": name,
            "fused": fused,
            "rate": report["rate"]["achieved"],
            "module": report["module"],
            "note": report["module_note"],
            "batch": report["onnx"]["batch"],
            "relative_errors": errors,
            "predicts": len(found) == 1,
            "seconds": round(seconds),
        }


def main() -> None:
    """Runs what FILE doesn't have yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--json", type=Path, required=True)
    words = parser.parse_args()
    rows = json.loads(words.json.read_text()) if words.json.exists() else []
    known = {(row["name"], row["fused"]) for row in rows}
    for name in words.names or NAMES:
        for fused in (False, True):
            if (name, fused) not in known:
                rows.append(with_operators(lambda name=name, fused=fused: one(name, fused)))
                words.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        errors = ", ".join(f"{error:.1e}" for error in row["relative_errors"])
        print(
            f"{row['name']:12} {'fused' if row['fused'] else '':6} {row['rate']:.0%} removed, "
            f"{row['module']} ({row['note']}), batch {row['batch']}, off by {errors}, "
            f"predict {'runs' if row['predicts'] else 'fails'}, {row['seconds']} s"
        )


if __name__ == "__main__":
    main()
