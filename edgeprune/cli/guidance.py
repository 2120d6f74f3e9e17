"""Help beyond the options: commands to copy, and what a mistyped one may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

_EXAMPLES = {
    "": (
        "edgeprune inspect net.pt --profile raspberry-pi-5",
        "edgeprune net.pt --profile raspberry-pi-5 --latency-ms 20 --data images/",
        "edgeprune check model.onnx --profile jetson-nano",
        "edgeprune COMMAND --help",
    ),
    "prune": (
        "edgeprune net.pt --profile raspberry-pi-5 --latency-ms 20",
        "edgeprune weights.pth --arch my_package.nets:build --input 1x3x224x224 --rate 0.5",
        "edgeprune net.pt -p jetson-nano --data images/ --epochs 5 --max-drop 1",
        'edgeprune net.pt --require "under 20 ms, lose at most 3 %"',
        "edgeprune net.pt -p rk3588 --precision int8 --data images/ -o out/",
    ),
    "sweep": (
        "edgeprune sweep net.pt --profile raspberry-pi-5 --points 8",
        "edgeprune sweep net.pt --data images/ --jobs 2 -o curve/",
    ),
    "check": (
        "edgeprune check model.onnx --profile jetson-nano --latency-ms 20",
        "edgeprune check model.onnx --profile host --measure --json",
    ),
    "inspect": (
        "edgeprune inspect net.pt --profile raspberry-pi-5",
        "edgeprune inspect torchvision.models:resnet18 --input 1x3x224x224 --json",
    ),
    "diff": (
        "edgeprune diff net-raspberry-pi-4/ net-raspberry-pi-5/",
        "edgeprune diff before.onnx after.onnx --json",
    ),
}


def examples(command: str = "") -> str:
    """What stands below a command's help; "": below that of all."""
    return "\n".join(["Examples:", *(f"  {line}" for line in _EXAMPLES[command])])


def mistyped(words: list[str], commands: Iterable[str]) -> str | None:
    """What to say of a first word that is close to a command and nothing else: a MODEL would be a
    file that is there, or have a dot, a colon or a slash in its name."""
    word = words[0] if words else ""
    known = [name for name in commands if not name.startswith("-")]
    if not word or word.startswith("-") or word in known or any(c in word for c in "./:\\"):
        return None
    near = difflib.get_close_matches(word.lower(), known, n=1)
    if not near or Path(word).exists():
        return None
    return f"there is no command or file {word}: did you mean {near[0]}? (see edgeprune --help)"
