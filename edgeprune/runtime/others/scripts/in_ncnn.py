"""ncnn on the CPU, every kind of reduced precision switched off; pnnx reads the ONNX file.

pnnx also writes a script that runs what it made, which says which inputs and outputs lost their
batch.
"""

from __future__ import annotations

import os
import re
import subprocess
from importlib.util import find_spec

import ncnn
import numpy as np

_REDUCED = ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage")
_KINDS = {"float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32", "bool": "i8"}

# Importing it would need torch; its program stands in its folder.
_PNNX = find_spec("pnnx")
if _PNNX is None or _PNNX.origin is None:
    raise ModuleNotFoundError("No module named 'pnnx'", name="pnnx")
_PROGRAM = os.path.join(os.path.dirname(_PNNX.origin), "pnnx")


def version() -> str:
    """Of the runtime."""
    return ncnn.__version__


def load_and_run(model_path: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in the file's order."""
    script, left_over = _converted(model_path, inputs)
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = 1
    for name in _REDUCED:
        setattr(net.opt, "use_" + name, False)
    # The text of the net comes first; it returns another number than 0 for an unknown layer.
    if net.load_param("model.ncnn.param") or net.load_model("model.ncnn.bin"):
        lacking = ", ".join(left_over) or "one of its ops"
        raise RuntimeError(f"ncnn can't load what pnnx made: pnnx has no ncnn layer for {lacking}")
    extractor = net.create_extractor()
    for place, value in enumerate(inputs.values()):
        extractor.input(
            f"in{place}",
            _mat(value, _said(script, rf"Mat\(in{place}\b(.*?)\)\.clone")),
        )
    count = len(set(re.findall(r'ex\.extract\("out(\d+)"\)', script)))
    return [_extracted(extractor, place, script) for place in range(count)]


def _converted(model_path: str, inputs: dict[str, np.ndarray]) -> tuple[str, list[str]]:
    """Makes model.ncnn.param and .bin here. Returns the text of the script that pnnx writes beside
    them, and the ops that it found no layer for."""
    # It writes beside what it reads: it gets the model, and files of weights, by a link here.
    folder, own = os.path.split(model_path)
    for name in os.listdir(folder):
        if name.startswith(own):
            os.symlink(os.path.join(folder, name), name.replace(own, "model.onnx", 1))
            if name != own and not os.path.exists(name):
                os.symlink(os.path.join(folder, name), name)
    shapes = ",".join(
        "[{}]{}".format(",".join(map(str, value.shape)), _KINDS[str(value.dtype)])
        for value in inputs.values()
    )
    done = subprocess.run(
        [_PROGRAM, "model.onnx", "fp16=0", "inputshape=" + shapes],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = done.stdout.decode(errors="replace")
    if not os.path.exists("model.ncnn.param"):
        last = said.strip().splitlines()[-1:]
        raise RuntimeError(f"pnnx ended with {done.returncode} and made no file: {last}")
    with open("model_ncnn.py") as file:
        return file.read(), sorted(set(re.findall(r"^ignore (\S+) ", said, re.MULTILINE)))


def _said(script: str, pattern: str) -> str:
    """What stands in the script where `pattern` has its group; nothing where it doesn't fit."""
    found = re.search(pattern, script)
    return found.group(1) if found else ""


def _batch(words: str) -> int | None:
    """The dimension that is the batch to ncnn, which it keeps apart."""
    found = re.search(r"batch_index=(\d+)", words)
    return int(found.group(1)) if found else None


def _mat(value: np.ndarray, words: str) -> ncnn.Mat:
    value = value.astype(np.float32 if value.dtype.kind == "f" else np.int32)
    gone = re.search(r"squeeze\((\d+)\)", words)
    if gone:
        value = np.ascontiguousarray(value.squeeze(int(gone.group(1))))
    batch = _batch(words)
    mat = ncnn.Mat(value) if batch is None else ncnn.Mat(value, batch_index=batch)
    return mat.clone()


def _extracted(extractor: ncnn.Extractor, place: int, script: str) -> np.ndarray:
    status, mat = extractor.extract(f"out{place}")
    if status:
        raise RuntimeError(f"ncnn did not compute output {place} (it says {status})")
    words = _said(script, rf"from_numpy\((.*\bout{place}\b.*)")
    batch = _batch(words)
    found = np.array(mat) if batch is None else mat.numpy(batch_index=batch)
    lost = re.search(r"unsqueeze\((\d+)\)", words)
    return np.expand_dims(found, int(lost.group(1))) if lost else found
