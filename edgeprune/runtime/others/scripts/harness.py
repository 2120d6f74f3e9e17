"""Runs a model in one runtime, in whatever Python has it.

    python harness.py in_openvino MODEL.onnx INPUTS.npz OUTPUTS.npz

INPUTS.npz holds arrays by input name, OUTPUTS.npz gets the outputs: as "0", "1", ... where the
runtime gives them in the file's order, else by name. Stdout is one JSON object: {"version",
"seconds"}, or {"error": "one line"}, or {"missing": name} where this Python lacks the runtime.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np


def main(words: list[str]) -> dict[str, Any]:
    """Loads the script that `words` names, runs the model and stores the outputs."""
    script, model, given, made = words
    model, given, made = (os.path.abspath(path) for path in (model, given, made))
    try:
        runtime = importlib.import_module(script)
    except ImportError as error:
        return {"missing": error.name or str(error)}
    with np.load(given, allow_pickle=False) as file:
        inputs = {name: np.ascontiguousarray(file[name]) for name in file.files}
    began = time.perf_counter()
    # Converters leave files where they run.
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outputs = runtime.load_and_run(model, inputs)
        os.chdir(os.path.dirname(made))
    seconds = time.perf_counter() - began
    if not isinstance(outputs, dict):
        outputs = {str(place): each for place, each in enumerate(outputs)}
    arrays: dict[str, Any] = {name: np.asarray(each) for name, each in outputs.items()}
    with open(made, "wb") as file:
        np.savez(file, **arrays)
    return {"version": str(runtime.version()), "seconds": round(seconds, 3)}


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


if __name__ == "__main__":
    # Runtimes and converters print what they like: stdout is kept for the answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        answer = main(sys.argv[1:])
    except (Exception, SystemExit) as failure:
        answer = {"error": _one_line(failure)}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    # Some of their libraries crash when the interpreter takes them down, after all was said.
    os._exit(0)
