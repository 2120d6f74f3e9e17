"""Folders of policies with random weights, written by lerobot itself (`make bench-env`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgeprune.loading.policies.folder import _without_its_neighbours
from edgeprune.loading.policies.smolvla import without_hub

STATE, ACTION = "observation.state", "action"
#: A language model of a few layers, as its own config.json would have it.
TINY_VLM = {
    "scale_factor": 2,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 100,
        "rms_norm_eps": 1e-5,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
    },
}


@dataclass(frozen=True)
class Case:
    """A policy: its kind, the size of its cameras' frames, their names, joints, and settings that
    aren't lerobot's defaults."""

    kind: str
    side: tuple[int, int]
    cameras: tuple[str, ...]
    joints: int
    settings: Mapping[str, Any] = field(default_factory=dict)


CASES = {
    "small": Case(
        "act", (96, 96), ("images.top",), 14,
        {"dim_model": 64, "n_heads": 4, "dim_feedforward": 128, "chunk_size": 10,
         "n_action_steps": 10},
    ),
    "default": Case("act", (480, 640), ("images.top", "images.wrist"), 14),
    "diffusion-small": Case(
        "diffusion", (64, 64), ("images.top", "images.wrist"), 4,
        {"down_dims": (32, 64), "diffusion_step_embed_dim": 32, "crop_shape": (56, 56),
         "spatial_softmax_num_keypoints": 8, "num_inference_steps": 10,
         "noise_scheduler_type": "DDIM"},
    ),
    "diffusion": Case("diffusion", (96, 96), ("image",), 2),
    "smolvla-small": Case(
        "smolvla", (48, 64), ("images.top",), 6,
        {"vlm_model_name": "vlm", "num_vlm_layers": 4, "resize_imgs_with_padding": (64, 64),
         "chunk_size": 8, "n_action_steps": 8, "tokenizer_max_length": 12, "num_steps": 5},
    ),
    "smolvla": Case("smolvla", (480, 640), ("images.top",), 6),
    "two-files": Case(
        "diffusion", (96, 96), ("image",), 2,
        {"down_dims": (128, 256), "crop_shape": (84, 84), "num_inference_steps": 10,
         "noise_scheduler_type": "DDIM"},
    ),
}  # fmt: skip


def written(folder: Path, case: Case) -> tuple[Any, Any, Any]:
    """A policy as lerobot saves it, and its own steps before and after."""
    _without_its_neighbours()
    from lerobot.configs.types import FeatureType, PolicyFeature

    torch.manual_seed(0)
    names = [f"observation.{camera}" for camera in case.cameras]
    declared = {
        "input_features": {
            STATE: PolicyFeature(FeatureType.STATE, (case.joints,)),
            **{name: PolicyFeature(FeatureType.VISUAL, (3, *case.side)) for name in names},
        },
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (case.joints,))},
        "device": "cpu",
        **case.settings,
    }
    folder.mkdir(exist_ok=True)
    made = {"act": _act, "diffusion": _diffusion, "smolvla": _smolvla}[case.kind]
    policy, config = made(folder, declared)
    for parameter in policy.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    shapes = {STATE: (case.joints,), ACTION: (case.joints,), **dict.fromkeys(names, (3, 1, 1))}
    statistics = {name: _drawn(shape) for name, shape in shapes.items()}
    before, after = _steps(config, statistics)
    for each in (policy.eval(), before, after):
        each.save_pretrained(folder)
    file = folder / "config.json"
    # Some releases of draccus leave out which policy it is.
    file.write_text(json.dumps({"type": case.kind, **json.loads(file.read_text())}))
    return policy, before, after


def _drawn(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    least = -torch.rand(shape)
    return {"mean": torch.rand(shape), "std": torch.rand(shape) + 0.3, "min": least,
            "max": least + 0.5 + torch.rand(shape)}  # fmt: skip


def _act(folder: Path, declared: dict[str, Any]) -> tuple[Any, Any]:
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(**declared, pretrained_backbone_weights=None)
    return ACTPolicy(config), config


def _diffusion(folder: Path, declared: dict[str, Any]) -> tuple[Any, Any]:
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = DiffusionConfig(**declared)
    return DiffusionPolicy(config), config


def _smolvla(folder: Path, declared: dict[str, Any]) -> tuple[Any, Any]:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    config = SmolVLAConfig(**declared)
    if "vlm_model_name" in declared:
        vlm = folder / config.vlm_model_name
        vlm.mkdir()
        (vlm / "config.json").write_text(json.dumps(TINY_VLM))
    with without_hub(folder, config, SmolVLAPolicy.__module__):
        return SmolVLAPolicy(config).float(), config


def _steps(config: Any, statistics: dict[str, Any]) -> tuple[Any, Any]:
    """lerobot's normalisation, without SmolVLA's tokenizer, which would be fetched."""
    from lerobot.processor import (
        AddBatchDimensionProcessorStep,
        NormalizerProcessorStep,
        PolicyProcessorPipeline,
        UnnormalizerProcessorStep,
    )
    from lerobot.processor.converters import (
        policy_action_to_transition,
        transition_to_policy_action,
    )
    from lerobot.utils.constants import (
        POLICY_POSTPROCESSOR_DEFAULT_NAME,
        POLICY_PREPROCESSOR_DEFAULT_NAME,
    )

    modes = config.normalization_mapping
    both = {**config.input_features, **config.output_features}
    norm = NormalizerProcessorStep(features=both, norm_map=modes, stats=statistics)
    back = UnnormalizerProcessorStep(
        features=config.output_features, norm_map=modes, stats=statistics
    )
    before = PolicyProcessorPipeline(
        steps=[AddBatchDimensionProcessorStep(), norm], name=POLICY_PREPROCESSOR_DEFAULT_NAME
    )
    after = PolicyProcessorPipeline(
        steps=[back],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
