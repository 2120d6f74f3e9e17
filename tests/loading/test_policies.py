"""Folders of lerobot's policies: loaded as they run on a robot, normalisation inside."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.loading.folder import from_folder
from edgeprune.loading.load import load
from edgeprune.loading.policies.normalize import scaling
from export.recipes.policy import Policy

STATE, TOP = "observation.state", "observation.images.top"


# -- normalisation ---------------------------------------------------------------------------------


def test_each_mode_is_lerobots() -> None:
    x = torch.tensor([0.5, -2.0])
    two = {"mean": torch.tensor([1.0, 2.0]), "std": torch.tensor([2.0, 0.0])}
    there = scaling("a", "MEAN_STD", two, back=False)
    assert there is not None
    torch.testing.assert_close(there(x), (x - two["mean"]) / (two["std"] + 1e-8))
    back = scaling("a", "MEAN_STD", two, back=True)
    assert back is not None
    torch.testing.assert_close(back.back(x), x * two["std"] + two["mean"])
    for mode, low, high in (("MIN_MAX", "min", "max"), ("QUANTILES", "q01", "q99")):
        ends = {low: torch.tensor([-1.0, 3.0]), high: torch.tensor([3.0, 9.0])}
        made = scaling("a", mode, ends, back=False)
        assert made is not None
        torch.testing.assert_close(made(x), 2 * (x - ends[low]) / (ends[high] - ends[low]) - 1)
        torch.testing.assert_close(made.back(made(x)), x)
    assert scaling("a", "IDENTITY", two, back=False) is None
    assert scaling("a", "MEAN_STD", {}, back=False) is None


def test_what_is_missing_or_unknown_is_said() -> None:
    with pytest.raises(UserError, match="has no max"):
        scaling("action", "MIN_MAX", {"min": torch.zeros(1)}, back=True)
    with pytest.raises(UserError, match="normalised by LOG"):
        scaling("action", "LOG", {"min": torch.zeros(1)}, back=True)


# -- a folder, with a lerobot made up --------------------------------------------------------------


class Network(nn.Module):
    """As ACT: a camera and a state to a chunk of actions; an encoder that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2))
        self.feel, self.act = nn.Linear(4, 32), nn.Linear(32, 15)
        self.vae_encoder = nn.Linear(3, 3)

    def forward(self, seen: dict[str, Any]) -> tuple[Tensor, None]:
        images = sum(self.see(x).mean((2, 3)) for x in seen["observation.images"])
        joined = torch.relu(images + self.feel(seen[STATE]))
        return self.act(joined).view(-1, 5, 3), None


class Feature:
    def __init__(self, kind: str, shape: list[int]) -> None:
        self.type, self.shape = kind, tuple(shape)


class Config:
    @staticmethod
    def from_pretrained(path: str, local_files_only: bool) -> Any:
        assert local_files_only
        held = json.loads((Path(path) / "config.json").read_text())
        made = Config()
        for side in ("input_features", "output_features"):
            setattr(made, side, {n: Feature(**_renamed(f)) for n, f in held[side].items()})
        made.normalization_mapping = held["normalization_mapping"]
        made.pretrained_backbone_weights = "from the network"
        return made


def _renamed(feature: dict[str, Any]) -> dict[str, Any]:
    return {"kind": feature["type"], "shape": feature["shape"]}


class MadeUpPolicy(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        assert config.pretrained_backbone_weights is None and config.device == "cpu"
        self.model = Network()


STATISTICS = {
    STATE: {"mean": torch.arange(4.0), "std": torch.full((4,), 2.0)},
    TOP: {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)},
    "action": {"min": torch.tensor([-1.0, 0.0, 1.0]), "max": torch.tensor([1.0, 4.0, 3.0])},
}


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("lerobot", "lerobot.configs", "lerobot.configs.policies", "lerobot.policies",
             "lerobot.policies.act", "lerobot.policies.act.modeling_act")  # fmt: skip
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lerobot.configs.policies"].PreTrainedConfig = Config  # type: ignore[attr-defined]
    sys.modules[names[-1]].ACTPolicy = MadeUpPolicy  # type: ignore[attr-defined]


def folder_at(path: Path, statistics: bool = True, **changes: Any) -> Path:
    path.mkdir()
    torch.manual_seed(0)
    policy = MadeUpPolicy(types.SimpleNamespace(pretrained_backbone_weights=None, device="cpu"))
    save_file(policy.state_dict(), path / "model.safetensors")
    config = {
        "type": "act",
        "input_features": {
            STATE: {"type": "STATE", "shape": [4]},
            TOP: {"type": "VISUAL", "shape": [3, 20, 20]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [3]}},
        "normalization_mapping": {"STATE": "MEAN_STD", "VISUAL": "MEAN_STD", "ACTION": "MIN_MAX"},
        **changes,
    }
    (path / "config.json").write_text(json.dumps(config))
    if statistics:
        flat = {f"{n}.{k}": t for n, each in STATISTICS.items() for k, t in each.items()}
        for side, step in (("pre", "normalizer"), ("post", "unnormalizer")):
            file = f"policy_{side}processor_step_0_{step}_processor.safetensors"
            save_file(flat, path / file)
            steps = [{"registry_name": "to_batch_processor"},
                     {"registry_name": f"{step}_processor", "state_file": file}]  # fmt: skip
            (path / f"policy_{side}processor.json").write_text(json.dumps({"steps": steps}))
    return path


def by_hand(path: Path, state: Tensor, top: Tensor) -> Tensor:
    """What lerobot's own steps come to."""
    policy = from_folder(path).network
    seen = (top - STATISTICS[TOP]["mean"]) / (STATISTICS[TOP]["std"] + 1e-8)
    felt = (state - STATISTICS[STATE]["mean"]) / (STATISTICS[STATE]["std"] + 1e-8)
    with torch.no_grad():
        made = policy({STATE: felt, "observation.images": [seen]})[0]
    low, high = STATISTICS["action"]["min"], STATISTICS["action"]["max"]
    return (made + 1) / 2 * (high - low) + low


@pytest.mark.usefixtures("lerobot")
def test_a_folder_becomes_a_file_that_gives_actions(tmp_path: Path) -> None:
    """From lerobot's folder to the robot's loop, by the policy's own names."""
    path = folder_at(tmp_path / "policy")
    loaded = load(str(path))
    assert loaded.source == "folder" and loaded.name == "policy"
    assert "data set's units" in loaded.remarks[0] and "without its VAE" in loaded.remarks[0]
    result = edgeprune.prune(
        loaded.module, loaded.module.dummy_inputs, "raspberry-pi-5", rate=0.0,
        output=tmp_path / "out",
    )  # fmt: skip
    assert list(result.report["input_shapes"]) == [STATE, TOP]
    policy = Policy(tmp_path / "out" / "model.onnx", steps=2)
    generator = np.random.default_rng(0)
    state = generator.random(4, np.float32)
    frame = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    actions = policy.chunk({STATE: state, TOP: frame})
    top = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
    want = by_hand(path, torch.from_numpy(state)[None], top)[0]
    np.testing.assert_allclose(actions, want.numpy(), rtol=1e-4, atol=1e-5)
    first = [policy.select_action({STATE: state, TOP: frame}) for _ in range(3)]
    np.testing.assert_array_equal(first[1], actions[1])
    np.testing.assert_array_equal(first[2], actions[0])  # two steps, then it looks again
    with pytest.raises(ValueError, match=r"lacks observation\.images\.top"):
        policy.chunk({STATE: state})
    with pytest.raises(ValueError, match=r"observation.state is \[5\]"):
        policy.chunk({STATE: np.zeros(5), TOP: frame})


@pytest.mark.usefixtures("lerobot")
def test_without_statistics_it_is_said(tmp_path: Path) -> None:
    loaded = load(str(folder_at(tmp_path / "policy", statistics=False)))
    assert "no statistics" in loaded.remarks[0]
    state, top = torch.rand(1, 4), torch.rand(1, 3, 20, 20)
    with torch.no_grad():
        made = loaded.module(observation_state=state, observation_images_top=top)["action"]
        plain = loaded.module.network({STATE: state, "observation.images": [top]})[0]
    torch.testing.assert_close(made, plain)


@pytest.mark.usefixtures("lerobot")
def test_what_does_not_fit_is_said_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lerobot's type 'pi0': so far only act, diffusion"):
        load(str(folder_at(tmp_path / "other", type="pi0")))
    old = folder_at(tmp_path / "old")
    save_file({"normalize_inputs.buffer_a.mean": torch.zeros(1)}, old / "model.safetensors")
    with pytest.raises(UserError, match="older lerobot"):
        load(str(old))
    empty = folder_at(tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no weights: model\.safetensors"):
        load(str(empty))
    cut = folder_at(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(UserError, match="cut short or damaged"):
        load(str(cut))
    broken = folder_at(tmp_path / "broken")
    save_file({"model.act.bias": torch.zeros(2)}, broken / "model.safetensors")
    with pytest.raises(UserError, match="can't be loaded as lerobot's act"):
        load(str(broken))


def test_without_lerobot_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_at(tmp_path / "policy")
    for name in ("lerobot", "lerobot.configs", "lerobot.configs.policies", "lerobot.policies"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="pip install lerobot"):
        load(str(path))
