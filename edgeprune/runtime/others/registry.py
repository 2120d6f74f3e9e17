"""Which runtimes a file can be tried in, and what each needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeprune.core.errors import UserError

#: Most that an output may be off, as a share of its largest magnitude, where fp32 is computed.
FP32_TOLERANCE = 1e-3

#: The same where nothing but fp16 can be had: ten bits through some tens of layers.
FP16_TOLERANCE = 5e-2

_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")


@dataclass(frozen=True)
class Runtime:
    """script: in `scripts/`, without its ending. packages: what pip installs it from.

    tolerance: of the outputs, relative to each one's largest magnitude. computes_in: said to the
    user. release: of onnxruntime, in a folder of its own; None for what an interpreter has.
    remark: what else an installation should know, one line.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    tolerance: float = FP32_TOLERANCE
    computes_in: str = "fp32"
    release: str | None = None
    remark: str = ""

    @property
    def install(self) -> str:
        """How it is installed, in a few words."""
        command = f"pip install {' '.join(self.packages)}"
        return f"{command}, {self.remark}" if self.remark else command


_APART = "in a Python of its own: it holds numpy below 2"

RUNTIMES = {
    each.name: each
    for each in (
        Runtime("openvino", "in_openvino", ("openvino",)),
        Runtime("ncnn", "in_ncnn", ("ncnn", "pnnx")),
        Runtime("mnn", "in_mnn", ("MNN",)),
        Runtime("litert", "in_litert", ("onnx2tf", "ai-edge-litert"), remark=_APART),
        Runtime(
            "rknn",
            "in_rknn",
            ("rknn-toolkit2",),
            tolerance=FP16_TOLERANCE,
            computes_in="fp16, as the NPU does",
            remark=_APART,
        ),
    )
}


def find_runtime(words: str) -> Runtime:
    """The runtime that a user names: one of RUNTIMES, or `onnxruntime==1.16.3`.

    Raises UserError for another name, or a version that isn't one.
    """
    name, equals, release = words.strip().lower().partition("==")
    if name == "onnxruntime" and equals and _VERSION.fullmatch(release):
        return Runtime(words, "in_onnxruntime", (f"onnxruntime=={release}",), release=release)
    if not equals and name in RUNTIMES:
        return RUNTIMES[name]
    known = ", ".join((*RUNTIMES, "onnxruntime==1.16.3 (or another version)"))
    raise UserError(f"--runtime {words}: no such runtime; there are {known}")
