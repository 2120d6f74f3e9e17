"""What no model library holds in this form: robots' policies, recurrent nets, small edge models."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import catalogue_convolutional as convolutional
import catalogue_detectors as detectors
import catalogue_sequences as sequences
import torch
from catalogue import Made, image
from torch import Tensor, nn

_VOCABULARY = 100


class Policy(nn.Module):
    """lerobot's ACT network on a robot's state and one camera."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, camera: Tensor) -> Tensor:
        """state: (batch, 14); camera: (batch, 3, height, width) → actions (batch, 100, 14)."""
        actions = self.network({"observation.state": state, "observation.images": [camera]})
        return actions[0]  # type: ignore[no-any-return]


def _act(side: tuple[int, int], **settings: Any) -> Made:
    network = act_network(side, ("top",), **settings)
    return Policy(network), (torch.randn(1, 14), image(3, *side)), {}


def act_network(side: tuple[int, int], cameras: Sequence[str], **settings: Any) -> nn.Module:
    """ACT with random weights for 14 joints and cameras of (height, width) pixels."""
    _without_other_policies()
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    seen = {
        f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, *side)) for c in cameras
    }
    state = PolicyFeature(FeatureType.STATE, (14,))
    config = ACTConfig(
        input_features={"observation.state": state, **seen},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (14,))},
        pretrained_backbone_weights=None,
        device="cpu",
        **settings,
    )
    network: nn.Module = ACTPolicy(config).model
    return network


def _without_other_policies() -> None:
    """lerobot.policies imports policies whose libraries aren't here: an empty package instead."""
    if "lerobot.policies" in sys.modules:
        return
    spec = find_spec("lerobot")
    assert spec is not None and spec.origin is not None
    package = types.ModuleType("lerobot.policies")
    package.__path__ = [str(Path(spec.origin).parent / "policies")]
    sys.modules["lerobot.policies"] = package


def _tokens(network: Callable[[], nn.Module]) -> Made:
    return network(), (torch.randint(0, _VOCABULARY, (1, 20)),), {}


def _on(network: Callable[[], nn.Module], *size: int) -> Made:
    return network(), (image(*size),), {}


def _stateful() -> Made:
    state = (torch.zeros(1, 1, 64), torch.zeros(1, 1, 64))
    return sequences.StatefulLSTM(), (image(10, 40), *(torch.randn_like(s) for s in state)), {}


def _cross_attention() -> Made:
    return sequences.CrossAttention(), (image(12, 64), image(20, 48)), {}


_SMALL_ACT = {"dim_model": 64, "n_heads": 4, "n_encoder_layers": 2, "n_decoder_layers": 1}

MAKERS: dict[str, Callable[[], Made]] = {
    "act-small": partial(_act, (96, 96), **_SMALL_ACT),
    "act-default": partial(_act, (480, 640)),
    "lstm-classifier": partial(_tokens, partial(sequences.RecurrentClassifier, nn.LSTM)),
    "gru-classifier": partial(_tokens, partial(sequences.RecurrentClassifier, nn.GRU)),
    "lstm-with-state": _stateful,
    "transformer-encoder": partial(_tokens, sequences.EncoderClassifier),
    "cross-attention": _cross_attention,
    "conformer": partial(_on, sequences.Conformer, 50, 40),
    "pointnet": partial(_on, sequences.PointNet, 3, 128),
    "unet": partial(_on, convolutional.UNet, 3, 64, 64),
    "yolo-c2f": partial(_on, detectors.Yolo, 3, 128, 128),
    "shuffle-ssd": partial(_on, detectors.ShuffleSSD, 3, 128, 128),
    "lprnet": partial(_on, convolutional.LPRNet, 3, 24, 94),
    "imdn": partial(_on, convolutional.IMDN, 3, 32, 32),
    "cifar-resnet20-a": partial(_on, convolutional.CifarResNet, 3, 32, 32),
    "pixel-shuffle": partial(_on, convolutional.SuperResolution, 1, 32, 32),
}
