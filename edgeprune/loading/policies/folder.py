"""A policy's folder, by the lerobot that the user has installed; weights from safetensors alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.loading.checkpoint import read_safetensors
from edgeprune.loading.import_spec import one_line
from edgeprune.loading.policies.act import ActPolicy
from edgeprune.loading.policies.diffusion import DiffusionPolicy
from edgeprune.loading.policies.normalize import Scaling, scaling
from edgeprune.loading.policies.robot import ACTION, RobotPolicy
from edgeprune.loading.policies.smolvla import SmolVlaPolicy, without_hub
from edgeprune.loading.torchvision_compat import with_operators


@dataclass(frozen=True)
class Kind:
    """Where lerobot has a policy, what of it runs on a robot (all of it where no attribute is
    named), what that becomes here, and what has to stand while it is built."""

    module: str
    name: str
    network: str | None
    made: Callable[[nn.Module, Mapping[str, Any], Mapping[str, Scaling]], RobotPolicy]
    around: Callable[[Path, Any, str], AbstractContextManager[None]] = lambda *_: nullcontext()


#: The policies that can be loaded, by their type in config.json.
KNOWN = {
    "act": Kind("lerobot.policies.act.modeling_act", "ACTPolicy", "model", ActPolicy),
    "diffusion": Kind(
        "lerobot.policies.diffusion.modeling_diffusion",
        "DiffusionPolicy",
        "diffusion",
        DiffusionPolicy,
    ),
    "smolvla": Kind(
        "lerobot.policies.smolvla.modeling_smolvla",
        "SmolVLAPolicy",
        None,
        SmolVlaPolicy,
        without_hub,
    ),
}
#: Weights of the backbone come with the folder's, nothing is fetched, nothing compiled.
_HERE = {
    "device": "cpu",
    "pretrained_backbone_weights": None,
    "compile_model": False,
    "load_vlm_weights": False,
}
#: Where lerobot keeps the statistics, and the step's name in there.
_PROCESSORS = {
    "policy_preprocessor.json": "normalizer_processor",
    "policy_postprocessor.json": "unnormalizer_processor",
}


def is_policy(config: Any) -> bool:
    """Whether a config.json is of one of lerobot's policies."""
    features = ("input_features", "output_features")
    return isinstance(config, dict) and isinstance(config.get("type"), str) and all(
        isinstance(config.get(name), dict) for name in features
    )  # fmt: skip


def policy_from_folder(path: Path, config: dict[str, Any]) -> nn.Module:
    """The policy as it runs on a robot, normalisation inside where the folder has statistics.

    Raises UserError for a kind that isn't known, a folder that doesn't fit its configuration, or
    where lerobot isn't installed.
    """
    kind = config["type"]
    if kind not in KNOWN:
        raise UserError(
            f"{path} is a policy of lerobot's type {kind!r}: so far only "
            f"{', '.join(sorted(KNOWN))} can be loaded"
        )
    try:
        return with_operators(lambda: _policy(path, config))
    except UserError:
        raise
    except ImportError as error:
        raise UserError(
            f"{path} is a policy of lerobot, which can't be imported ({one_line(error)}): "
            "pip install lerobot"
        ) from error
    except Exception as error:
        raise UserError(f"{path} can't be loaded as lerobot's {kind}: {one_line(error)}") from error


def _policy(path: Path, config: dict[str, Any]) -> RobotPolicy:
    kind = KNOWN[config["type"]]
    _without_its_neighbours()
    configs = importlib.import_module("lerobot.configs.policies")
    policies = importlib.import_module(kind.module)
    made = configs.PreTrainedConfig.from_pretrained(str(path), local_files_only=True)
    for setting, value in _HERE.items():
        setattr(made, setting, value)
    # What lerobot prints would stand amid the report.
    with kind.around(path, made, kind.module), contextlib.redirect_stdout(io.StringIO()):
        policy = getattr(policies, kind.name)(made)
    file = path / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{path} has no weights: {file.name} was looked for")
    weights = read_safetensors(file)
    if any(key.startswith(("normalize_", "unnormalize_")) for key in weights):
        raise UserError(
            f"{path} was saved by an older lerobot, with its normalisation among the weights: run "
            "lerobot's migrate_policy_normalization.py on it"
        )
    # Taken as they are, not copied: a policy may be as large as half of the memory.
    policy.load_state_dict(weights, assign=True)
    modes = {str(getattr(k, "value", k)): str(getattr(m, "value", m))
             for k, m in made.normalization_mapping.items()}  # fmt: skip
    features = {**made.input_features, **made.output_features}
    scalings: dict[str, Scaling] = {}
    for feature, declared in features.items():
        statistics = _statistics(path, feature, back=feature == ACTION)
        mode = modes.get(str(getattr(declared.type, "value", declared.type)), "IDENTITY")
        found = scaling(feature, mode, statistics, feature == ACTION)
        if found is not None:
            scalings[feature] = found
    shapes = {feature: declared.shape for feature, declared in made.input_features.items()}
    network = policy if kind.network is None else getattr(policy, kind.network)
    return kind.made(network.eval(), shapes, scalings).eval()


def _statistics(path: Path, feature: str, back: bool) -> dict[str, Tensor]:
    """What the folder knows of a feature's distribution; nothing where it has no processors."""
    processor, step = list(_PROCESSORS.items())[int(back)]
    file = path / processor
    if not file.is_file():
        return {}
    steps = json.loads(file.read_text(encoding="utf-8")).get("steps", [])
    states = [
        s["state_file"] for s in steps if s.get("registry_name") == step and "state_file" in s
    ]
    if not states:
        return {}
    prefix = f"{feature}."
    held = read_safetensors(path / Path(states[0]).name)
    return {k.removeprefix(prefix): t for k, t in held.items() if k.startswith(prefix)}


def _without_its_neighbours() -> None:
    """lerobot.policies imports every policy, whose libraries few have all: where that fails, the
    package stands there empty, and the one policy is imported by itself."""
    try:
        importlib.import_module("lerobot.policies")
    except (
        Exception
    ):  # whatever another policy's file raises beside another release of its libraries
        spec = find_spec("lerobot")
        if spec is None or spec.origin is None:
            raise
        package = types.ModuleType("lerobot.policies")
        package.__path__ = [str(Path(spec.origin).parent / "policies")]
        sys.modules["lerobot.policies"] = package
