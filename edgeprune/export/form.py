"""What an ONNX file is to look like, for the runtime that reads it."""

from __future__ import annotations

from dataclasses import dataclass

#: The lowest that torch's exporter writes; what is older, the passes of `opset` make of it.
EXPORTED_OPSET = 18

#: What files can be written in.
OLDEST_OPSET, NEWEST_OPSET = 11, 23


@dataclass(frozen=True)
class FileForm:
    """opset: of the standard's ops. fixed: the example inputs' sizes are the only ones it takes;
    else the batch is free where the model allows it. operators: of the standard's, those that the
    runtime has; None for all."""

    opset: int = EXPORTED_OPSET
    fixed: bool = False
    operators: tuple[str, ...] | None = None


#: As long as nobody asks for another.
USUAL_FORM = FileForm()
