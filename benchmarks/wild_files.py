"""Files of the kinds that people have on disk, written anew: what loads, what is said of others.

Each writes one file (or folder) and says what is expected: words of a remark or of the one line.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gzip
import importlib
import json
import pathlib
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune.loading.torchvision_compat import with_operators

ARCH = f"{__file__}:backbone"


@dataclasses.dataclass(frozen=True)
class File:
    """says: of the line that refuses it; empty where it loads. remark: what must be said then.
    arch: whether --arch is given. trust: whether --trust is."""

    name: str
    write: Callable[[pathlib.Path], None]
    says: str = ""
    remark: str = ""
    arch: bool = True
    trust: bool = False


class Backbone(nn.Module):
    """The network that all weights are of."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


def backbone() -> nn.Module:
    torch.manual_seed(0)
    return Backbone().eval()


def plain() -> nn.Module:
    """Of torch's classes alone."""
    torch.manual_seed(0)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    return nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.GELU(), *head).eval()


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in backbone().state_dict().items()}


def averaged() -> dict[str, torch.Tensor]:
    return {k: v + 1 if v.is_floating_point() else v for k, v in weights().items()}


def parameters() -> dict[str, torch.Tensor]:
    return {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in weights().items()}


FILES: list[File] = []


def saved(name: str, content: Callable[[], Any], **expected: Any) -> None:
    FILES.append(File(name, lambda path: torch.save(content(), path), **expected))


def written(name: str, content: bytes, says: str) -> None:
    FILES.append(File(name, lambda path: path.write_bytes(content) and None, says, arch=False))


# -- weights in checkpoints ------------------------------------------------------------------------

saved("bare.pth", weights)
for key in ("state_dict", "model_state_dict", "model", "net", "params", "weights", "module"):
    saved(f"under_{key}.pth", lambda k=key: {k: weights(), "epoch": 3}, remark=key)
for key in ("model_state", "student", "network", "generator", "encoder_state"):
    saved(f"under_{key}.ckpt", lambda k=key: {"epoch": 3, k: weights(), "best": 0.9}, remark=key)
for key in ("ema", "params_ema", "model_ema", "state_dict_ema", "ema_state_dict"):
    saved(f"{key}.pth", lambda k=key: {"model": weights(), k: averaged()}, remark=key)
for prefix in ("module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "backbone.net."):
    saved(f"prefix_{prefix}pth", lambda p=prefix: weights(p), remark=prefix)
saved(
    "lightning.ckpt",
    lambda: {
        "epoch": 3,
        "state_dict": {**weights("model."), "criterion.weight": torch.ones(7)},
        "hyper_parameters": {"lr": 1e-3},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    },
    remark="criterion.weight",
)
saved(
    "profiled.pth",
    lambda: {**weights(), "total_ops": torch.zeros(1), "features.0.total_params": torch.zeros(1)},
    remark="total_ops",
)
saved("with_numbers.pth", lambda: {**weights(), "epoch": 3, "best_acc": 0.93}, remark="epoch")
saved("nested.pth", lambda: {"run": {"last": {"model": weights()}}}, remark="run/last/model")
saved("in_a_list.pth", lambda: [3, {"optimizer": {"a": torch.ones(2)}}, weights()], remark="2")
saved("in_a_tuple.pth", lambda: (weights(), {"lr": 0.1}), remark="0")
saved("ordered.pth", lambda: collections.OrderedDict(weights()))
saved("half.pth", lambda: {k: v.half() for k, v in weights().items()}, remark="float16")
saved("bfloat16.pth", lambda: {k: v.bfloat16() for k, v in weights().items()}, remark="bfloat16")
saved("double.pth", lambda: {k: v.double() for k, v in weights().items()}, remark="float64")
saved(
    "without_counters.pth",
    lambda: {k: v for k, v in weights().items() if "num_batches" not in k},
)
saved("as_parameters.pth", parameters)
saved("with_arguments.pth.tar", lambda: {"state_dict": weights(), "args": argparse.Namespace(lr=1)})
saved("with_scores.pth", lambda: {"model": weights(), "accuracy": np.float64(0.93)})
saved("with_arrays.pth", lambda: {"model": weights(), "curve": np.arange(3.0)})
saved("with_paths.pth", lambda: {"model": weights(), "counts": collections.Counter("aab")})
saved("with_folders.pth", lambda: {"model": weights(), "save_dir": pathlib.Path("runs/3")})
saved(
    "with_an_optimizer.pth",
    lambda: {"model": weights(), "optimizer": torch.optim.Adam(backbone().parameters())},
)
FILES.append(
    File(
        "old_format.pth",
        lambda path: torch.save(weights(), path, _use_new_zipfile_serialization=False),
    )
)
FILES.append(File("weights.safetensors", lambda path: save_file(weights(), path)))
FILES.append(
    File("safetensors_as.bin", lambda path: save_file(weights("model."), path), remark="model.")
)

# -- what doesn't fit ------------------------------------------------------------------------------

saved("another.pth", lambda: nn.Linear(4, 2).state_dict(), says="doesn't fit")
saved("wider.pth", lambda: {**weights(), "head.weight": torch.ones(9, 24)}, says="9x24")
saved("a_layer_more.pth", lambda: {**weights(), "tail.weight": torch.ones(2)}, says="tail.weight")
saved("no_weights.pth", lambda: {"epoch": 3, "lr": 0.1}, says="epoch, lr")
saved("weights_alone.pth", weights, says="--arch", arch=False)
saved("nan.pth", lambda: {**weights(), "head.bias": torch.full((5,), float("nan"))}, says="NaN")
saved(
    "inf.pth", lambda: {**weights(), "head.bias": torch.full((5,), float("inf"))}, says="infinite"
)

# -- whole models ----------------------------------------------------------------------------------

saved("whole.pt", plain, arch=False)
saved("whole_half.pt", lambda: plain().half(), arch=False, remark="float16")
saved("whole_beside.pt", lambda: {"model": plain(), "epoch": 3}, arch=False, remark="model")
saved(
    "interrupted.pt",
    lambda: {"epoch": 12, "model": None, "ema": plain().half(), "updates": 1200},
    arch=False,
    remark="ema",
)
saved("whole_nan.pt", lambda: nan_in(plain()), arch=False, says="NaN")
saved("own_class.pt", backbone, arch=False, says="--trust")
saved("own_class_trusted.pt", backbone, arch=False, trust=True)


def nan_in(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = float("nan")
    return module


def older() -> nn.Module:
    """As an older torch pickled it."""
    module = plain()
    del module[1].approximate, module[0].padding_mode
    return module


saved("older_torch.pt", older, arch=False)


# -- damage ----------------------------------------------------------------------------------------


def flipped(path: pathlib.Path) -> None:
    """One bit of one weight."""
    torch.save(plain(), path)
    content = bytearray(path.read_bytes())
    place = content.find(plain()[0].weight.detach().numpy().tobytes()[:64])
    content[place + 40] ^= 0x10
    path.write_bytes(bytes(content))


def truncated(path: pathlib.Path) -> None:
    torch.save(plain(), path)
    path.write_bytes(path.read_bytes()[:-300])


def short_safetensors(path: pathlib.Path) -> None:
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:-300])


FILES.append(File("bit_flipped.pt", flipped, "damaged", arch=False))
FILES.append(File("truncated.pt", truncated, "cut short", arch=False))
FILES.append(File("truncated.safetensors", short_safetensors, "cut short"))

# -- no models -------------------------------------------------------------------------------------

written("pointer.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 6\n", "LFS")
written("page.pt", b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "web page")
written("keras.pt", b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5")
written("lite.pt", struct.pack("<I", 28) + b"TFL3" + bytes(64), "TensorFlow Lite")
written("llama.pt", b"GGUF\x03\0\0\0" + bytes(64), "GGUF")
written("config.pt", json.dumps({"hidden": 3}).encode(), "JSON")
written("empty.pt", b"", "empty")
written("text.pt", b"hello\n", "isn't a model")
written("picture.pt", b"\x89PNG\r\n\x1a\n" + bytes(64), "picture")


def onnx_file(path: pathlib.Path) -> None:
    import onnx
    from onnx import helper

    node = helper.make_node("Relu", ["x"], ["y"])
    info = [helper.make_tensor_value_info(n, 1, [1, 3]) for n in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    path.write_bytes(helper.make_model(graph, producer_name="torch").SerializeToString())
    onnx.load(str(path))


def scripted(path: pathlib.Path) -> None:
    torch.jit.save(torch.jit.script(plain()), str(path))


def zipped(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a model")


def tarred(path: pathlib.Path) -> None:
    inner = path.with_suffix(".inner")
    torch.save(weights(), inner)
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "model.pth")
    inner.unlink()


FILES.append(File("renamed_onnx.pt", onnx_file, "ONNX", arch=False))
FILES.append(File("scripted.pt", scripted, "TorchScript", arch=False))
FILES.append(File("zip.pt", zipped, "isn't a model", arch=False))
FILES.append(File("tar.pth", tarred, "tar archive", arch=False))
written("gzipped.pth", gzip.compress(b"x" * 99), "gzip")

# -- folders ---------------------------------------------------------------------------------------


def declare_operators() -> None:
    """torchvision's, which a torch without it lacks."""
    with_operators(lambda: importlib.import_module("torchvision"))


def transformers_folder(path: pathlib.Path) -> None:
    declare_operators()
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4)
    ResNetForImageClassification(config).save_pretrained(path)


def timm_folder(path: pathlib.Path) -> None:
    declare_operators()
    import timm

    path.mkdir()
    model = timm.create_model("resnet10t", num_classes=4)
    save_file(model.state_dict(), path / "model.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 4, "pretrained_cfg": {"num_classes": 4}}
    (path / "config.json").write_text(json.dumps(config))


def empty_folder(path: pathlib.Path) -> None:
    path.mkdir()


FILES.append(File("transformers", transformers_folder, arch=False))
FILES.append(File("timm", timm_folder, arch=False))
FILES.append(File("folder", empty_folder, "config.json", arch=False))
