"""What a file is that is no PyTorch model, by its first bytes."""

from __future__ import annotations

import json
from pathlib import Path

from edgeprune.core.errors import UserError

FORMS = (
    "a pickled nn.Module (.pt), a torch.export program (.pt2), a folder of Hugging Face or timm, "
    "or a state dict (.pth, .safetensors) with --arch"
)
_GIVE = "give the PyTorch model it came from"
_MAGIC = (
    (b"version https://git-lfs", "a git-LFS pointer, not the file itself: run `git lfs pull`"),
    (b"\x89HDF\r\n", f"an HDF5 file (Keras, as a rule): {_GIVE}"),
    (b"GGUF", f"a GGUF file (llama.cpp): {_GIVE}"),
    (b"\x1f\x8b", "gzipped: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x93NUMPY", "a NumPy array: give the model, and this as --data or --input"),
    (b"\x89PNG", "a picture: give the model, and this as --data or --input"),
    (b"\xff\xd8\xff", "a picture: give the model, and this as --data or --input"),
    (b"%PDF", "a PDF"),
)


def check_exists(spec: str) -> None:
    """Raises UserError for what is neither a file or folder that is there nor a factory's name."""
    if ":" not in spec and not Path(spec).expanduser().exists():
        raise UserError(
            f"there is no file {spec}: give {FORMS}, or a factory 'package.module:function'"
        )


def foreign(path: Path, start: bytes) -> str | None:
    """What a file is, in words that end a sentence; None where it may be a model.

    start: its first 512 bytes or so.
    """
    for magic, words in _MAGIC:
        if start.startswith(magic):
            return words
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page, not a model: the download asked for a login or a confirmation"
    if start[4:8] == b"TFL3":
        return f"a TensorFlow Lite file: {_GIVE}"
    if start[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if is_onnx(start):
        return f"an ONNX file: {_GIVE}, or `edgeprune check` it as it is"
    if text.startswith(b"{") and _is_json(path):
        return "JSON, a model's configuration perhaps: give the folder that it lies in"
    return None


def is_onnx(start: bytes) -> bool:
    """Whether a file begins as ONNX's do: an IR version, then the producer's name or the graph."""
    return len(start) > 2 and start[0] == 0x08 and start[1] < 32 and start[2] in (0x12, 0x1A, 0x3A)


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a JSON header, and that."""
    return len(start) > 9 and start[8:10] in (b'{"', b"{ ") and start[5:8] == b"\0\0\0"


def _is_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            json.loads(file.read(1_000_000))
    except (ValueError, OSError):
        return False
    return True
