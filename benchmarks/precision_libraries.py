"""int8 and fp16 of public networks by EdgePrune, onnxruntime, NNCF and AIMET, side by side.

    PYTHONPATH=. python benchmarks/precision_libraries.py --data ../shared/data --json FILE \\
        [--peers PYTHON] [--only WAY] [--latency] [NETWORK …]

Each way gets the same fp32 file and the same 400 unlabelled calibration pictures, and its file runs
in onnxruntime on the same labelled pictures. Networks: dscnn, resnet20, resnet56, lite0 (all unless
named). PYTHON is one that has nncf and aimet-onnx, which EdgePrune doesn't need; without it those
ways are left out. --latency: also each of our files' median latency over that of fp32, batch 1, one
thread, in turns. Each row of FILE is kept: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.precision_peers import WAYS
from edgeprune.quantization import PRESETS, fp16, int8
from edgeprune.runtime.ort_subprocess import run_runner

Row = dict[str, Any]
CALIBRATION = 400
NETWORKS = ("dscnn", "resnet20", "resnet56", "lite0")
OURS = ("ours-x86-vnni", "ours-x86-avx2", "ours-arm", "ours-tensorrt", "ours-fp16")
#: Points that int8 may cost (issue 29).
MOST_DROP = {"resnet56": 0.3, "resnet20": 0.5, "dscnn": 0.5, "lite0": 1.0}
_BATCH = 10


def files_of(network: str, data: Path, folder: Path) -> tuple[Path, Path]:
    """The fp32 file of a network and its pictures: x to calibrate, test_x and test_y to judge."""
    model, pictures = folder / f"{network}.onnx", folder / f"{network}.npz"
    if model.exists() and pictures.exists():
        return model, pictures
    import edgeprune
    from benchmarks.real_networks import CASES

    case = CASES[network](data)
    # What `right` closes over: the labelled pictures.
    names = case.judge.__code__.co_freevars
    held = {
        name: cell.cell_contents
        for name, cell in zip(names, case.judge.__closure__ or (), strict=True)
    }
    np.savez(
        pictures,
        x=case.calibration[:CALIBRATION].numpy(),
        test_x=held["test_x"].numpy(),
        test_y=held["test_y"].numpy(),
    )
    result = edgeprune.prune(case.model, case.example, profile="raspberry-pi-4", rate=0.0)
    result.export(str(model))
    return model, pictures


def answers(model: Path, x: Any) -> Any:
    """Logits (n, classes) in onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batches = [x[i : i + _BATCH] for i in range(0, len(x), _BATCH)]
    return np.concatenate([session.run(None, {name: batch})[0] for batch in batches])


def made(way: str, model: Path, pictures: Path, out: Path, peers: str | None) -> Row:
    """Lets a way write its file; what is told of it."""
    if way in WAYS:
        python = peers if peers and not way.startswith("onnxruntime") else sys.executable
        script = str(Path(__file__).with_name("precision_peers.py"))
        done = subprocess.run(
            [python, script, way, str(model), str(pictures), str(out)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or ["it broke off"])[-1][:100]}
        return {}
    rows = np.load(pictures)["x"]
    samples = [{"x": rows[i : i + 1]} for i in range(len(rows))]
    if way == "ours-fp16":
        told = fp16(model, out, samples[:64])
    else:
        told = int8(model, out, samples, PRESETS[way.removeprefix("ours-")])
    return {"kept_float": [str(kept) for kept in told.kept_float], "runs": told.runs}


def row_of(network: str, way: str, options: argparse.Namespace) -> Row:
    """What one way makes of one network."""
    model, pictures = files_of(network, options.data, options.files)
    out = options.files / f"{network}-{way}.onnx"
    began = time.perf_counter()
    row: Row = {"network": network, "way": way, **made(way, model, pictures, out, options.peers)}
    row["seconds"] = round(time.perf_counter() - began, 1)
    if "error" in row:
        return row
    held = np.load(pictures)
    before, after = answers(model, held["test_x"]), answers(out, held["test_x"])
    right = held["test_y"]
    row["fp32"] = 100 * float((before.argmax(1) == right).mean())
    row["drop"] = row["fp32"] - 100 * float((after.argmax(1) == right).mean())
    row["agreement"] = 100 * float((before.argmax(1) == after.argmax(1)).mean())
    row["error"] = None
    row["relative_error"] = float(np.linalg.norm(after - before) / np.linalg.norm(before))
    row["size"] = out.stat().st_size / model.stat().st_size
    if options.latency and way in ("ours-x86-vnni", "ours-fp16"):
        told = run_runner(["compare", model, out, "--threads", 1])
        row["latency"] = told
    return row


def printed(row: Row) -> None:
    if row.get("error"):
        print(f"{row['network']:9} {row['way']:23} {row['error']}", flush=True)
        return
    print(
        f"{row['network']:9} {row['way']:23} fp32 {row['fp32']:.2f} drop {row['drop']:+.2f}  "
        f"agreement {row['agreement']:.1f}  error {row['relative_error']:.4f}  "
        f"size {row['size']:.3f}  {row['seconds']:.0f} s  "
        f"{len(row.get('kept_float', ()))} kept {row.get('latency', '')}",
        flush=True,
    )


def verdict(rows: list[Row]) -> None:
    """Ours against the bound, and against the best of the libraries' defaults."""
    for network in NETWORKS:
        here = {r["way"]: r for r in rows if r["network"] == network and not r.get("error")}
        if "ours-x86-vnni" not in here:
            continue
        ours = here["ours-x86-vnni"]["drop"]
        defaults = [here[w]["drop"] for w in ("onnxruntime", "nncf", "aimet") if w in here]
        best = min(defaults, default=float("nan"))
        kept = "kept" if ours <= MOST_DROP[network] else "missed"
        print(
            f"{network}: drop {ours:+.2f}, at most {MOST_DROP[network]} {kept}; best default "
            f"{best:+.2f}, better than ours by {ours - best:+.2f} (at most 0.3)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--files", type=Path, default=Path("/tmp/precision_libraries"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--peers")
    parser.add_argument("--only", choices=(*OURS, *WAYS))
    parser.add_argument("--latency", action="store_true")
    options = parser.parse_args()
    options.files.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = json.loads(options.json.read_text()) if options.json.exists() else []
    ways = [w for w in (*OURS, *WAYS) if options.peers or not w.startswith(("nncf", "aimet"))]
    for network in options.networks or NETWORKS:
        for way in [options.only] if options.only else ways:
            row = next((r for r in rows if (r["network"], r["way"]) == (network, way)), None)
            if row is None:
                row = row_of(network, way, options)
                rows.append(row)
                options.json.write_text(json.dumps(rows, indent=1))
            printed(row)
    verdict(rows)


if __name__ == "__main__":
    main()
