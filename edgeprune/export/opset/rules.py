"""What changed with each opset without a pass of its own: words that must not stand there.

Most ops only took more element types with a new opset: those keep their form. Others took a new
attribute, whose default is what they did before, or a new value of one.
"""

from __future__ import annotations

from typing import Any

#: What an attribute that is new must be for the op to do what it did before: it is left out then.
#: Where the default isn't that, the attribute must be stated (RoiAlign).
NEW_ATTRIBUTES: dict[tuple[str, int], dict[str, Any]] = {
    ("DequantizeLinear", 23): {"output_dtype": 0},
    ("QuantizeLinear", 23): {"precision": 0},
    ("DequantizeLinear", 21): {"block_size": 0},
    ("QuantizeLinear", 21): {"block_size": 0, "output_dtype": 0},
    ("AveragePool", 19): {"dilations": [1, 1]},
    ("Cast", 19): {"saturate": 1},
    ("CastLike", 19): {"saturate": 1},
    ("QuantizeLinear", 19): {"saturate": 1},
    ("LpPool", 18): {"ceil_mode": 0, "dilations": [1, 1]},
    ("RoiAlign", 16): {"coordinate_transformation_mode": "output_half_pixel"},
    ("ScatterElements", 16): {"reduction": "none"},
    ("ScatterND", 16): {"reduction": "none"},
    ("BatchNormalization", 14): {"training_mode": 0},
    ("GRU", 14): {"layout": 0},
    ("LSTM", 14): {"layout": 0},
    ("RNN", 14): {"layout": 0},
    ("Reshape", 14): {"allowzero": 0},
    ("ArgMax", 12): {"select_last_index": 0},
    ("ArgMin", 12): {"select_last_index": 0},
    ("GatherND", 12): {"batch_dims": 0},
}

#: Defaults that changed what the op does: where one isn't stated, the op can't go back.
NEW_BEHAVIOUR = {("RoiAlign", 16): "half_pixel"}

#: Values that an attribute could not have before.
NEW_VALUES: dict[tuple[str, int], dict[str, frozenset[Any]]] = {
    ("Pad", 19): {"mode": frozenset(["wrap"])},
    ("Resize", 19): {"coordinate_transformation_mode": frozenset(["half_pixel_symmetric"])},
    ("ScatterElements", 18): {"reduction": frozenset(["max", "min"])},
    ("ScatterND", 18): {"reduction": frozenset(["max", "min"])},
}

#: Scale and zero point for each channel are of opset 13; before there was one of each.
ONE_SCALE_BEFORE_13 = frozenset(["QuantizeLinear", "DequantizeLinear"])
