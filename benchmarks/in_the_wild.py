"""Networks and files of the kinds that people have: pruned and right, or one true line.

    PYTHONPATH=. .venv/bin/python benchmarks/in_the_wild.py [--only WORDS] [--out wild.json]

Each network is run twice: at rate 0 the file must equal the user's own module in onnxruntime, at
the batch given and, where the file says that it takes any, at another, and at other sizes where
some are free; at rate 0.5 the share removed must be near. Each file is loaded as the command does.
Resumable: rows stand in a file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import edgeprune
from benchmarks.wild_files import ARCH, FILES, File, averaged, weights
from benchmarks.wild_free_sizes import FREE_SIZED, FreeSized
from benchmarks.wild_networks import NETWORKS, Network
from edgeprune.core.errors import EdgePruneError, UserError
from edgeprune.loading.load import LoadedModel, load

PROFILE = "raspberry-pi-4"


def judged(network: Network) -> dict[str, Any]:
    """One row: what came of a network."""
    began = time.perf_counter()
    torch.manual_seed(0)
    module, inputs = network.make()
    module.eval()
    row: dict[str, Any] = {"name": network.name, "expected": network.says or "pruned"}
    try:
        row |= whole(module, inputs, network) | pruned(module, inputs, network)
    except UserError as error:
        line = str(error)
        right = bool(network.says) and re.search(network.says, line) and "\n" not in line
        row |= {"outcome": "said" if right else "REFUSED", "line": line[:300]}
    except EdgePruneError as error:
        row |= {"outcome": "WRONG", "line": str(error)[:300]}
    except Exception as error:
        row |= {"outcome": "CRASH", "line": f"{type(error).__name__}: {str(error)[:300]}"}
    else:
        if network.says and row["outcome"] == "pruned":
            row["outcome"] = "pruned, though a refusal was expected"
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def whole(module: torch.nn.Module, inputs: Any, network: Network) -> dict[str, Any]:
    """The file at rate 0 against the user's own module, or, where what that draws became constants,
    against the module with these."""
    result = edgeprune.prune(module, inputs, PROFILE, rate=0, data="none", **network.options)
    if network.options.get("freeze_noise"):
        module = result.module
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        result.export(path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        args = inputs if isinstance(inputs, tuple) else (inputs,)
        worst = error(session, module, args)
        if result.report["onnx"]["batch"] == "dynamic":
            worst = max(worst, error(session, module, wider(args, session)))
    return {"error at rate 0": worst, "batch": result.report["onnx"]["batch"]}


def free_sized(network: FreeSized) -> dict[str, Any]:
    """One row: the file at rate 0 against the user's own module at other sizes, then half of it."""
    began = time.perf_counter()
    torch.manual_seed(0)
    module, inputs = network.make()
    module.eval()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    row: dict[str, Any] = {"name": network.name, "expected": network.says or "free"}
    options: dict[str, Any] = {"data": "none", "free_sizes": network.free}
    try:
        result = edgeprune.prune(module, inputs, PROFILE, rate=0, **options)
        half = edgeprune.prune(
            module, inputs, PROFILE, rate=0.5, importance="magnitude", **options
        ).report
        with tempfile.TemporaryDirectory() as folder:
            session = onnxruntime.InferenceSession(
                str(result.export(Path(folder) / "model.onnx")), providers=["CPUExecutionProvider"]
            )
            calls = [args, *resized(session, args)]
            row["error at rate 0"] = max(error(session, module, call) for call in calls)
    except Exception as error_:
        return row | {"outcome": "CRASH", "line": f"{type(error_).__name__}: {str(error_)[:300]}"}
    told = "; ".join(result.report["remarks"])
    free = len(calls) > 1
    proved = half["validation"]["passed"] and half["surgery"]["oracle_max_rel_error"] <= 1e-4
    right = network.says in told if network.says else free and row["error at rate 0"] < 1e-3
    kind = "said" if network.says else "pruned"
    row |= {"rate": round(half["rate"]["achieved"], 3), "line": told[:300], "sizes": len(calls)}
    row |= {"outcome": kind if right and proved and half["rate"]["met"] else "WRONG"}
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def resized(session: Any, args: Any) -> list[Any]:
    """The inputs at two other sizes of each dimension that a file calls free, its batch aside
    unless it lies elsewhere."""
    dims = [
        {d: name for d, name in enumerate(info.shape) if isinstance(name, str)}
        for info in session.get_inputs()
    ]
    batch_first = all(place.get(0) == "batch" for place in dims)
    names = sorted({n for place in dims for n in place.values() if n != "batch" or not batch_first})
    made = []
    for add in (8, 20) if names else ():
        known = {n: add + 4 * i for i, n in enumerate(names)}
        made.append([grown(t, place, known) for t, place in zip(args, dims, strict=True)])
    return made


def grown(tensor: Tensor, place: dict[int, str], known: dict[str, int]) -> Tensor:
    """A tensor with more of the same in some dimensions, by a multiple of 4."""
    for dim, name in place.items():
        if name in known:
            picked = torch.arange(tensor.shape[dim] + known[name]) % tensor.shape[dim]
            tensor = tensor.index_select(dim, picked)
    return tensor


def wider(args: Any, session: Any) -> Any:
    """Twice the samples, which lie where the file says."""
    shapes = iter([list(info.shape) for info in session.get_inputs()])

    def twice(tensor: Tensor) -> Tensor:
        shape = next(shapes)
        return torch.cat([tensor, tensor], shape.index("batch") if "batch" in shape else 0)

    return pytree.tree_map_only(Tensor, twice, args)


def error(session: Any, module: torch.nn.Module, args: Any) -> float:
    with torch.no_grad():
        want = [t for t in pytree.tree_leaves(module(*args)) if isinstance(t, Tensor)]
    tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
    names = [i.name for i in session.get_inputs()]
    arrays = [t.float().numpy() if t.is_floating_point() else t.numpy() for t in tensors]
    got = session.run(None, dict(zip(names, arrays, strict=False)))
    worst = 0.0
    for a, b in zip(got, want, strict=False):
        reference = b.detach().double().numpy()
        if a.shape != reference.shape:
            return float("inf")
        scale = max(float(np.abs(reference).max(initial=0.0)), 1e-9)
        worst = max(worst, float(np.abs(a.astype(float) - reference).max(initial=0.0)) / scale)
    return worst


def pruned(module: torch.nn.Module, inputs: Any, network: Network) -> dict[str, Any]:
    options = {"rate": 0.5, "data": "none", "importance": "magnitude", **network.options}
    report = edgeprune.prune(module, inputs, PROFILE, **options).report
    rate = report["rate"]["achieved"]
    row = {"rate": round(rate, 3), "line": report["obstacle"] or "", "module": report["module"]}
    proved = report["validation"]["passed"] and report["surgery"]["oracle_max_rel_error"] <= 1e-4
    if not proved:
        return {**row, "outcome": "WRONG"}
    enough = network.least <= rate <= 0.75
    honest = not report["met"] and report["obstacle"]
    return {**row, "outcome": "pruned" if enough else "said" if honest else "FAR"}


def loaded(file: File) -> dict[str, Any]:
    """One row: what came of a file, and how long the answer took."""
    row: dict[str, Any] = {"name": file.name, "expected": file.says or file.remark or "loads"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.name
        file.write(path)
        began = time.perf_counter()
        try:
            found = load(str(path), ARCH if file.arch else None, file.trust)
        except UserError as error:
            line = str(error)
            right = bool(file.says) and file.says in line and "\n" not in line
            row |= {"outcome": "said" if right else "REFUSED", "line": line[:300]}
        except Exception as error:
            row |= {"outcome": "CRASH", "line": f"{type(error).__name__}: {str(error)[:300]}"}
        else:
            remarks = "; ".join(found.remarks)
            right = not file.says and file.remark in remarks and not wrong_weights(file, found)
            row |= {"outcome": "loads" if right else "WRONG", "line": remarks[:300]}
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def wrong_weights(file: File, found: LoadedModel) -> bool:
    """Whether other weights than the file's came out."""
    if not file.arch:
        return False
    want = averaged() if "ema" in file.remark else weights()
    got = found.module.state_dict()
    return any(not torch.allclose(got[k].float(), v.float(), atol=1e-2) for k, v in want.items())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("wild.json"))
    parser.add_argument("--only", default="")
    words = parser.parse_args()
    rows = json.loads(words.out.read_text()) if words.out.exists() else {}
    warnings.simplefilter("ignore")
    work = [
        *((n.name, judged, n) for n in NETWORKS),
        *((n.name, free_sized, n) for n in FREE_SIZED),
        *((f.name, loaded, f) for f in FILES),
    ]
    for name, run, each in work:
        if name in rows or words.only not in name:
            continue
        row = rows[name] = run(each)  # type: ignore[operator]
        print(json.dumps(row), flush=True)
        words.out.write_text(json.dumps(rows, indent=1))
    return told({name: row for name, row in rows.items() if words.only in name})


def told(rows: dict[str, Any]) -> int:
    """Prints the summary; 1 where anything was wrong."""
    fine = ("pruned", "said", "loads")
    wrong = {
        name: row
        for name, row in rows.items()
        if row["outcome"] not in fine or row.get("error at rate 0", 0) > 1e-3
    }
    for kind, names in (("networks", [*NETWORKS, *FREE_SIZED]), ("files", FILES)):
        mine = [rows[each.name]["outcome"] for each in names if each.name in rows]
        counts = ", ".join(
            f"{mine.count(outcome)} {outcome}" for outcome in fine if outcome in mine
        )
        print(f"{len(mine)} {kind}: {counts}")
    print(f"{len(wrong)} wrong: {', '.join(wrong)}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
