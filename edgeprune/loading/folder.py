"""Folders as Hugging Face and timm write them: a configuration and weights, no code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeprune.core.errors import UserError
from edgeprune.loading.checkpoint import read_safetensors
from edgeprune.loading.import_spec import one_line
from edgeprune.loading.policies import is_policy, policy_from_folder
from edgeprune.loading.torchvision_compat import with_operators

_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")


def from_folder(path: Path) -> nn.Module:
    """The model of a folder: transformers' (config.json with `architectures`), timm's (with
    `architecture`), or a policy of lerobot's (with `input_features`).

    Raises UserError for any other, or where the library isn't installed.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".pt", ".pth", ".pt2"))
        more = f", or one of the files in it ({', '.join(inside[:3])})" if inside else ""
        raise UserError(
            f"{path} is a folder without a config.json that can be read: give a folder of Hugging "
            f"Face's or timm's{more}"
        ) from error
    if is_policy(config):
        return policy_from_folder(path, config)
    if isinstance(config, dict) and isinstance(config.get("architecture"), str):
        return _timm(path, config)
    names = config.get("architectures") if isinstance(config, dict) else None
    if isinstance(names, list) and names and isinstance(names[0], str):
        return _transformers(path, names[0])
    raise UserError(
        f"{path}/config.json names no architecture: only folders of transformers, timm and lerobot "
        "are known"
    )


def _library(name: str, path: Path) -> Any:
    try:
        return with_operators(lambda: importlib.import_module(name))
    except Exception as error:
        raise UserError(
            f"{path} holds a model of {name}, which can't be imported ({one_line(error)}): "
            f"pip install {name}"
        ) from error


def _transformers(path: Path, name: str) -> nn.Module:
    library = _library("transformers", path)
    made = getattr(library, name, None)
    if not isinstance(made, type) or not issubclass(made, nn.Module):
        raise UserError(f"{path} is a {name}, which the installed transformers doesn't have")
    library.utils.logging.disable_progress_bar()
    try:
        # Never code from the folder, nor anything from the network.
        module = made.from_pretrained(  # type: ignore[attr-defined]
            str(path), local_files_only=True, trust_remote_code=False, weights_only=True
        )
    except Exception as error:
        raise UserError(f"{path} can't be loaded as a {name}: {one_line(error)}") from error
    assert isinstance(module, nn.Module)
    return module


def _timm(path: Path, config: dict[str, Any]) -> nn.Module:
    library = _library("timm", path)
    own = config.get("pretrained_cfg") or {}
    options = {"num_classes": config.get("num_classes", own.get("num_classes"))}
    try:
        module: nn.Module = library.create_model(
            config["architecture"],
            pretrained=False,
            **{k: v for k, v in options.items() if isinstance(v, int)},
            **(config.get("model_args") or {}),
        )
        module.load_state_dict(_weights(path))
    except UserError:
        raise
    except Exception as error:
        name = config["architecture"]
        raise UserError(f"{path} can't be loaded as timm's {name}: {one_line(error)}") from error
    return module


def _weights(path: Path) -> dict[str, torch.Tensor]:
    for name in _WEIGHTS:
        file = path / name
        if file.is_file() and file.suffix == ".safetensors":
            return read_safetensors(file)
        if file.is_file():
            found: dict[str, torch.Tensor] = torch.load(file, "cpu", weights_only=True)
            return found
    raise UserError(f"{path} has no weights: {', '.join(_WEIGHTS)} was looked for")
