"""lerobot's own Diffusion Policy and SmolVLA: ours computes what theirs does, and can shrink."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprune
from edgeprune.core.errors import UserError
from edgeprune.loading.load import load
from edgeprune.loading.policies.schedule import denoised
from edgeprune.loading.torchvision_compat import with_operators

pytest.importorskip("lerobot")
from benchmarks.policy_folders import CASES, STATE, written

WORDS = ("observation.language.tokens", "observation.language.attention_mask")


def saved(tmp_path: Path, name: str, library: str) -> tuple[Any, Any, Any, Path]:
    pytest.importorskip(library)
    folder = tmp_path / "policy"
    return (*with_operators(lambda: written(folder, CASES[name])), folder)


def chunk(module: Any, seen: dict[str, Tensor], noise: Tensor) -> Tensor:
    fed = {name.replace(".", "_"): tensor for name, tensor in seen.items()}

    def step(x: Tensor, time: float) -> Tensor:
        with torch.no_grad():
            made: Tensor = module(**fed, sample=x, timestep=torch.tensor([int(time)]))["prediction"]
        return made

    return denoised(step, module.loop.schedule, noise)


def free_share(module: Any) -> float:
    """How many of the parameters lie in some dimension that a group reaches into."""
    coupling = edgeprune.couple(module, module.dummy_inputs)
    free = {slot.parameter for group in coupling.groups for slot in group.slots}
    sizes = {name: p.numel() for name, p in module.named_parameters() if name in
             coupling.parameters}  # fmt: skip
    return sum(n for name, n in sizes.items() if name in free) / sum(sizes.values())


def test_diffusion_policy_computes_what_lerobot_does(tmp_path: Path) -> None:
    policy, before, after, folder = saved(tmp_path, "diffusion-small", "diffusers")
    loaded = load(str(folder))
    module = loaded.module
    assert "one step of denoising" in loaded.remarks[0] and module.loop.times == 10
    history = {n: torch.rand(2, *module.shapes[n][1:]) for n in module.shapes}
    policy.reset()
    for i in range(2):
        batch = before({name: tensor[i] for name, tensor in history.items()})
        batch = {k: v for k, v in batch.items() if v is not None}
        cameras = [batch[name] for name in policy.config.image_features]
        batch["observation.images"] = torch.stack(cameras, dim=-4)
        for key, queue in policy._queues.items():
            if key in batch:
                queue.append(batch[key])
    noise = torch.randn(11, 1, *module.loop.schedule["shape"])
    want = after(policy.predict_action_chunk(batch, noise=noise[0]))
    made = chunk(module, {name: tensor[None] for name, tensor in history.items()}, noise)
    assert made.shape == want.shape
    torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-4)
    assert free_share(module) > 0.99


def test_smolvla_computes_what_lerobot_does(tmp_path: Path) -> None:
    policy, before, after, folder = saved(tmp_path, "smolvla-small", "transformers")
    loaded = load(str(folder))
    module = loaded.module
    assert "goes in as tokens" in loaded.remarks[0] and module.loop.times == 5
    inputs = module.dummy_inputs
    seen = {n: torch.rand(inputs[n].shape[1:]) for n in (STATE, "observation.images.top")}
    words = {name: inputs[name] for name in WORDS}
    batch = {k: v for k, v in before(dict(seen)).items() if v is not None} | words
    noise = torch.randn(6, 1, *module.loop.schedule["shape"])
    want = after(policy.predict_action_chunk(batch, noise=noise[0]))
    made = chunk(module, {n: t[None] for n, t in seen.items()} | words, noise)
    torch.testing.assert_close(made, want, rtol=1e-4, atol=1e-4)
    # What is behind the instruction's end changes nothing.
    other = {**words, WORDS[0]: torch.where(words[WORDS[1]], words[WORDS[0]], 7)}
    again = chunk(module, {n: t[None] for n, t in seen.items()} | other, noise)
    torch.testing.assert_close(again, made, rtol=1e-5, atol=1e-5)
    assert free_share(module) > 0.97


def test_keys_that_the_expert_reads_go_with_the_language_models(tmp_path: Path) -> None:
    *_, folder = saved(tmp_path, "smolvla-small", "transformers")
    module = load(str(folder)).module
    coupling = edgeprune.couple(module, module.dummy_inputs)
    prefix = "network.model.vlm_with_expert"
    vlm, expert = f"{prefix}.vlm.model.text_model.layers", f"{prefix}.lm_expert.layers"
    together = [{s.parameter for s in group.slots} for group in coupling.groups]

    def joined(*names: str) -> bool:
        return any(set(names) <= each for each in together)

    # Layer 0 looks at both; in layer 1 the expert makes keys of the language model's.
    heads = (f"{vlm}.0.self_attn.k_proj.weight", f"{expert}.0.self_attn.k_proj.weight")
    assert joined(*heads, f"{vlm}.0.self_attn.q_proj.weight", f"{expert}.0.self_attn.q_proj.weight")
    assert joined(f"{vlm}.1.self_attn.v_proj.weight", f"{expert}.1.self_attn.v_proj.weight")


def test_what_smolvla_needs_beside_its_weights_is_said(tmp_path: Path) -> None:
    *_, folder = saved(tmp_path, "smolvla-small", "transformers")
    (folder / "vlm" / "config.json").rename(tmp_path / "sizes.json")
    with pytest.raises(UserError, match=r"needs the sizes of vlm: put that model's config\.json"):
        load(str(folder))
    (tmp_path / "sizes.json").rename(folder / "vlm" / "config.json")
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, "add_image_special_tokens": True}))
    with pytest.raises(UserError, match="with add_image_special_tokens isn't supported"):
        load(str(folder))
