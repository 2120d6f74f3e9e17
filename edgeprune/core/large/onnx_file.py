"""ONNX files written and read piece by piece: protobuf holds a message several times over while it
does either, and a large model's weights are most of one.

Read so, a large weight stays where it lies: its tensor says in which file and where there, by an
absolute path. Written, it is copied from there.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

import onnx

#: Bytes of a weight that stays where it is, and of one that goes beside a file.
LARGE_WEIGHT, _WORTH_A_PLACE = 1 << 16, 1 << 10
_GRAPH, _INITIALIZER = 7, 5  # numbers of onnx.proto's fields, and of a tensor's:
_DATA, _OUTSIDE = 9, (13, 14)
_VARINT, _BYTES, _FIXED = 0, 2, {1: 8, 5: 4}  # protobuf's kinds of fields
_CHUNK = 1 << 24

#: Bytes of a file, or the data of a tensor there.
_Piece: TypeAlias = bytes | onnx.TensorProto


def read_light(path: Path) -> onnx.ModelProto:
    """The model of a file without its large weights' data. Raises ValueError or protobuf's
    DecodeError for what is no model."""
    return located(onnx.ModelProto.FromString(light(path)), path.parent)


def located(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model, with absolute paths of the weights that lie in a folder, in place."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(folder.absolute() / entry.value)
    return model


def fetch(tensors: Iterable[onnx.TensorProto]) -> None:
    """Takes the data of weights that lie elsewhere into the model, in place."""
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            held = io.BytesIO()
            _copy_data(tensor, held)
            tensor.raw_data = held.getvalue()
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")


def light(path: Path) -> bytes:
    """A file's content without its large weights' data, which lie outside of it then: in the file
    itself, for whoever reads this from the same folder."""
    pieces: list[bytes] = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, start, body, end in _fields(content, 0, len(content)):
            if number == _GRAPH:
                graph = b"".join(_light_graph(content, body, end, path.name))
                pieces += [_head(_GRAPH, len(graph)), graph]
            else:
                pieces.append(content[start:end])
    return b"".join(pieces)


def _light_graph(content: mmap.mmap, at: int, end: int, name: str) -> Iterator[bytes]:
    for number, start, body, after in _fields(content, at, end):
        if number != _INITIALIZER:
            yield content[start:after]
            continue
        tensor = b""
        for inner, begin, data, stop in _fields(content, body, after):
            large = inner == _DATA and stop - data >= LARGE_WEIGHT
            tensor += _placed(name, data, stop - data) if large else content[begin:stop]
        yield _head(_INITIALIZER, len(tensor)) + tensor


def _placed(location: str, offset: int, length: int) -> bytes:
    """What a tensor says of data that lie elsewhere."""
    made = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        made.external_data.add(key=key, value=str(value))
    return made.SerializeToString()


def write(model: onnx.ModelProto, path: Path, beside: Path | None = None) -> None:
    """Writes the file that protobuf would write, or one whose weights are in another file, in the
    same folder, `beside` it. Neither may be one that weights of `model` lie in."""
    graph = model.graph
    made: list[_Piece] = [_some(graph, lambda n: n < _INITIALIZER)]
    if beside is None:
        written = [_inside(tensor) for tensor in graph.initializer]
    else:
        with beside.open("wb") as file:
            written = [_beside(tensor, file, beside.name) for tensor in graph.initializer]
    for pieces in written:
        made += [_head(_INITIALIZER, _size(pieces)), *pieces]
    made.append(_some(graph, lambda n: n > _INITIALIZER))
    before, after = (_some(model, keep) for keep in (lambda n: n < _GRAPH, lambda n: n > _GRAPH))
    with path.open("wb") as file:
        for piece in (before, _head(_GRAPH, _size(made)), *made, after):
            if isinstance(piece, bytes):
                file.write(piece)
            else:
                _copy_data(piece, file)


def _inside(tensor: onnx.TensorProto) -> list[_Piece]:
    """A tensor with its data."""
    length = data_bytes(tensor)
    if length < LARGE_WEIGHT and not tensor.external_data:
        return [tensor.SerializeToString()]
    head = _some(tensor, lambda n: n < _DATA) + _head(_DATA, length)
    return [head, tensor, _some(tensor, lambda n: n > _DATA and n not in _OUTSIDE)]


def _beside(tensor: onnx.TensorProto, file: IO[bytes], name: str) -> list[_Piece]:
    """A tensor whose data, unless there are few, are in another file from now on."""
    length, offset = data_bytes(tensor), file.tell()
    if length < _WORTH_A_PLACE:
        return _inside(tensor)
    _copy_data(tensor, file)
    rest = _some(tensor, lambda n: n != _DATA and n not in _OUTSIDE)
    return [rest + _placed(name, offset, length)]


def data_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a weight's raw data, here or elsewhere; 0 for one that holds them otherwise."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return len(tensor.raw_data)
    return int(_entries(tensor)["length"])


def _copy_data(tensor: onnx.TensorProto, file: IO[bytes]) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        file.write(tensor.raw_data)
        return
    place = _entries(tensor)
    left = int(place["length"])
    with open(place["location"], "rb") as source:
        source.seek(int(place["offset"]))
        while left:
            chunk = source.read(min(left, _CHUNK))
            if not chunk:
                raise ValueError(f"{place['location']} ends within {tensor.name}")
            file.write(chunk)
            left -= len(chunk)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


# -- protobuf's encoding ---------------------------------------------------------------------------


def _some(message: Any, wanted: Callable[[int], bool]) -> bytes:
    """The fields of a message whose numbers are wanted."""
    made = type(message)()
    for field, value in message.ListFields():
        if wanted(field.number):
            if hasattr(value, "MergeFrom") and hasattr(value, "extend"):
                getattr(made, field.name).extend(value)
            elif hasattr(value, "CopyFrom"):
                getattr(made, field.name).CopyFrom(value)
            else:
                setattr(made, field.name, value)
    encoded: bytes = made.SerializeToString()
    return encoded


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(len(p) if isinstance(p, bytes) else data_bytes(p) for p in pieces)


def _head(number: int, length: int) -> bytes:
    """What stands before a field of so many bytes."""
    made, value = bytearray([number << 3 | _BYTES]), length
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Each field's number, where it begins, where its value begins, and where that ends."""
    while at < end:
        start = at
        tag, at = _number(content, at)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _number(content, at)
            stop = at + length
        elif kind == _VARINT:
            stop = _number(content, at)[1]
        else:
            stop = at + _FIXED[kind]
        if stop > end:
            raise ValueError("the file ends within a field")
        yield tag >> 3, start, at, stop
        at = stop


def _number(content: mmap.mmap, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
