"""SmolVLA as it runs on a robot: what it observes once, then its action expert step by step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeprune.core.errors import UserError
from edgeprune.core.loop import Loop
from edgeprune.loading.policies.normalize import Scaling
from edgeprune.loading.policies.robot import ACTION, RobotPolicy
from edgeprune.loading.policies.schedule import schedule

_STATE = "observation.state"
_TOKENS, _MASK = "observation.language.tokens", "observation.language.attention_mask"
_EMPTY = "observation.images.empty_camera"  # masked in lerobot, so that nothing hangs on it
_LONGEST_WAVE = 10_000.0  # of the rotary positions

#: Sizes of the models that lerobot names and that aren't in the folder: what their own config.json
#: on the hub says.
_KNOWN_MODELS: dict[str, dict[str, Any]] = {
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": {
        "scale_factor": 4,
        "text_config": {
            "model_type": "llama",
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "vocab_size": 49280,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192,
        },
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
    }
}

_Cached = tuple[Tensor, Tensor]  # a layer's keys and values


@contextmanager
def without_hub(path: Path, config: Any, module: str) -> Iterator[None]:
    """Lets lerobot build the policy from sizes alone: nothing is fetched, no tokenizer is needed.

    path: the policy's folder. module: where lerobot has the policy. The language model's sizes come
    from a folder that `vlm_model_name` names (a config.json in it), in the policy's folder or
    anywhere, or are those of a model that is known. Raises UserError for any other, and for
    settings that aren't followed.
    """
    import importlib

    for setting in ("adapt_to_pi_aloha", "add_image_special_tokens"):
        if getattr(config, setting, False):
            raise UserError(f"{path}: SmolVLA with {setting} isn't supported")
    transformers = importlib.import_module("transformers")
    sizes = _sizes(path, config.vlm_model_name)
    made = transformers.SmolVLMConfig(**sizes)
    tokenizer = SimpleNamespace(fake_image_token_id=0, global_image_token_id=0)  # see the settings
    stands = {"AutoConfig": made, "AutoProcessor": SimpleNamespace(tokenizer=tokenizer)}
    held = importlib.import_module(f"{module.rpartition('.')[0]}.smolvlm_with_expert")
    kept = {name: getattr(held, name) for name in stands}
    for name, value in stands.items():
        given = SimpleNamespace(from_pretrained=lambda *_, value=value, **__: value)
        setattr(held, name, given)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(held, name, value)


def _sizes(path: Path, name: str) -> dict[str, Any]:
    for folder in (path / name, Path(name)):
        file = folder / "config.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{file} can't be read as JSON") from error
            return {k: v for k, v in found.items() if k not in ("architectures", "model_type")}
    if name in _KNOWN_MODELS:
        return _KNOWN_MODELS[name]
    raise UserError(
        f"{path} needs the sizes of {name}: put that model's config.json into {path / name}, "
        "nothing is fetched"
    )


class SmolVlaPolicy(RobotPolicy):
    """Shukor et al. 2025, arXiv:2506.01844, as lerobot builds it: flow matching by an expert that
    reads the keys and values of a vision-language model.

    forward takes observation_state (batch, joints), each camera (batch, 3, height, width) from 0 to
    1, observation_language_tokens (batch, longest), int64, and observation_language_attention_mask,
    bool, of the instruction as lerobot's tokenizer gives them, and of the step sample (batch,
    chunk, widest action), normalised, and timestep (batch,), int64, the step's number. It gives
    {"prediction": (batch, chunk, widest action)}, the velocity, which `loop.schedule` makes the
    next sample of.
    """

    kind = (
        "SmolVLA, one step of its action expert (a chunk takes several: metadata edgeprune.loop); "
        "the instruction goes in as tokens"
    )

    def __init__(
        self, network: nn.Module, features: Mapping[str, Any], scalings: Mapping[str, Scaling]
    ) -> None:
        """As RobotPolicy; network: lerobot's SmolVLAPolicy."""
        config: Any = network.config
        length = (config.tokenizer_max_length,)
        seen = {name: shape for name, shape in features.items() if not name.startswith(_EMPTY)}
        super().__init__(network, {**seen, _TOKENS: length, _MASK: length}, scalings)
        self._sample = (config.chunk_size, config.max_action_dim)
        self._widest_state, self._resize = config.max_state_dim, config.resize_imgs_with_padding
        self._crosses = "cross" in config.attention_mode
        self._each = config.self_attn_every_n_layers
        model: Any = network.model
        parts = model.vlm_with_expert
        self._words: int = parts.config.text_config.vocab_size
        steps, joints = config.num_steps, config.action_feature.shape[0]
        self._schedule = schedule(
            [(0.0, 0.0, 0.0, 1.0, -1.0 / steps, 0.0)] * steps,
            list(range(steps)),
            None,
            self._sample,
            self.scaling(ACTION),
            {"first": 0, "last": config.chunk_size, "joints": joints, "observations": None},
        )
        size = parts.config.text_config.head_dim
        periods = torch.arange(size // 2) * (2.0 / size)
        self.register_buffer("frequencies", _LONGEST_WAVE**-periods)
        times = 1.0 - torch.arange(steps, dtype=torch.float64) / steps
        waves = _waves(times, parts.expert_hidden_size, config.min_period, config.max_period)
        self.register_buffer("times", waves.float())
        causal = torch.ones(config.chunk_size, config.chunk_size, dtype=torch.bool).tril()
        self.register_buffer("causal", causal)
        self.register_buffer("places", self._patch_places())

    frequencies: Tensor
    times: Tensor
    causal: Tensor
    places: Tensor

    @property
    def loop(self) -> Loop:
        """Its steps of flow matching."""
        return Loop(("sample", "timestep"), len(self._schedule["rows"]), self._schedule)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Where the expert moves a noisy chunk."""
        model: Any = self.network.model
        sample, timestep = inputs["sample"], inputs["timestep"]
        cached, valid = self._prefix(inputs)
        actions = model.action_in_proj(sample)
        moment = F.embedding(timestep, self.times)[:, None].expand(-1, self._sample[0], -1)
        x = model.action_time_mlp_in(torch.cat((actions, moment), dim=2))
        x = model.action_time_mlp_out(F.silu(x))
        own = torch.arange(self._sample[0])[None]
        after = valid.long().sum(1, keepdim=True) + own
        seen = valid[:, None, None].expand(-1, 1, self._sample[0], -1)
        causal = self.causal[None, None].expand(sample.shape[0], -1, -1, -1)
        both = torch.cat((seen, causal), dim=3)
        turns, later = self._turns(own), self._turns(after)
        for i, (_, layer) in enumerate(self._layers()):
            if layer is None:
                continue
            attention, keys, values = layer.self_attn, *cached[i]
            normed = layer.input_layernorm(x)
            q = _heads(attention.q_proj(normed), attention.head_dim)
            if self._crosses and not (self._each > 0 and i % self._each == 0):
                k = _heads(attention.k_proj(keys.flatten(2)), attention.head_dim)
                v = _heads(attention.v_proj(values.flatten(2)), attention.head_dim)
                out = _attended(_turned(q, turns), k, v, seen)
            else:
                k = _turned(_heads(attention.k_proj(normed), attention.head_dim), later)
                v = _heads(attention.v_proj(normed), attention.head_dim)
                k, v = torch.cat((keys, k), dim=1), torch.cat((values, v), dim=1)
                out = _attended(_turned(q, later), k, v, both)
            x = _behind(layer, x, out)
        x = model.vlm_with_expert.lm_expert.norm(x)
        return {"prediction": model.action_out_proj(x)}

    def _prefix(self, observation: Mapping[str, Tensor]) -> tuple[list[_Cached], Tensor]:
        """Each layer's keys and values, (batch, tokens, heads, size), of what is observed, and
        which of the tokens count, (batch, tokens)."""
        model: Any = self.network.model
        seen = self.seen(observation)
        vlm = model.vlm_with_expert.vlm.model
        pieces = [self._looked_at(seen[name]) for name in self.cameras if name in seen]
        words = vlm.text_model.get_input_embeddings()(seen[_TOKENS])
        pieces.append(words * math.sqrt(words.shape[-1]))
        state = F.pad(seen[_STATE], (0, self._widest_state - seen[_STATE].shape[1]))
        pieces.append(model.state_proj(state)[:, None])
        x, mask = torch.cat(pieces, dim=1), seen[_MASK]
        looks = x.shape[1] - 1 - mask.shape[1]
        valid = F.pad(F.pad(mask, (looks, 0), value=True), (0, 1), value=True)
        # Only the state, the last, looks at the state.
        last = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
        last[:-1, -1] = True
        allowed = valid[:, None, None] & ~last
        turns = self._turns(valid.long().cumsum(1) - 1)
        cached = []
        layers = self._layers()
        for i, (layer, _) in enumerate(layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(x)
            k = _turned(_heads(attention.k_proj(normed), attention.head_dim), turns)
            v = _heads(attention.v_proj(normed), attention.head_dim)
            cached.append((k, v))
            if i + 1 < len(layers):
                q = _turned(_heads(attention.q_proj(normed), attention.head_dim), turns)
                x = _behind(layer, x, _attended(q, k, v, allowed))
        return cached, valid

    def _layers(self) -> list[tuple[Any, Any]]:
        """The layers of language model and expert that run beside each other."""
        parts: Any = self.network.model.vlm_with_expert  # type: ignore[union-attr]
        models = [parts.get_vlm_model().text_model, parts.lm_expert]
        return list(zip(*parts.get_model_layers(models), strict=True))

    def _looked_at(self, image: Tensor) -> Tensor:
        """(batch, tokens, hidden) of a camera's frame."""
        vlm: Any = self.network.model.vlm_with_expert.vlm.model  # type: ignore[union-attr]
        vision = vlm.vision_model
        patches = vision.embeddings.patch_embedding(self._framed(image)).flatten(2).transpose(1, 2)
        x = patches + vision.embeddings.position_embedding(self.places)
        x = vision.post_layernorm(vision.encoder(inputs_embeds=x).last_hidden_state)
        looked: Tensor = vlm.connector(x)
        return looked * math.sqrt(looked.shape[-1])

    def _framed(self, image: Tensor) -> Tensor:
        """Resized with its sides kept in proportion, at the lower right, from -1 to 1."""
        if self._resize is not None:
            width, height = self._resize
            ratio = max(image.shape[3] / width, image.shape[2] / height)
            size = int(image.shape[2] / ratio), int(image.shape[3] / ratio)
            if size != tuple(image.shape[2:]):
                image = F.interpolate(image, size, mode="bilinear", align_corners=False)
            image = F.pad(image, (max(0, width - size[1]), 0, max(0, height - size[0]), 0))
        return image * 2.0 - 1.0

    def _patch_places(self) -> Tensor:
        """The numbers of a whole frame's patches, as the vision tower counts them."""
        vision: Any = self.network.model.vlm_with_expert.vlm.model.vision_model  # type: ignore[union-attr]
        shape = self.shapes[self.cameras[0]]
        frame = self._framed(torch.zeros(1, *shape))
        side = vision.patch_size
        mask = torch.ones(1, frame.shape[2] // side, frame.shape[3] // side, dtype=torch.bool)
        found: list[Tensor] = []
        table = vision.embeddings.position_embedding
        hook = table.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            with torch.no_grad():
                vision.embeddings(pixel_values=frame, patch_attention_mask=mask)
        finally:
            hook.remove()
        return found[0].clone()

    def _turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of rotary positions, (batch, tokens, 1, half a head)."""
        angles = (positions[..., None].float() * self.frequencies)[:, :, None]
        return angles.cos(), angles.sin()

    def noised(self, actions: Tensor | None, generator: torch.Generator) -> dict[str, Tensor]:
        """As RobotPolicy: on the straight way from noise to the actions."""
        steps = len(self._schedule["rows"])
        step = int(torch.randint(0, steps, (), generator=generator))
        x = torch.randn(self._sample, generator=generator)
        if actions is None:
            step = 0
        else:
            wide = F.pad(self.normalised(actions), (0, self._sample[1] - actions.shape[1]))
            share = step / steps
            x = (1 - share) * x + share * wide
        return {"sample": x, "timestep": torch.tensor(step)}

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One observation, an instruction of a third of the longest, and a step amid the loop."""
        generator = torch.Generator().manual_seed(1)
        (longest,) = self.shapes[_TOKENS]
        return {
            **super().dummy_inputs,
            _TOKENS: torch.randint(0, self._words, (1, longest), generator=generator),
            _MASK: torch.arange(longest)[None] < max(1, longest // 3),
            "sample": torch.randn(1, *self._sample, generator=generator),
            "timestep": torch.tensor([len(self._schedule["rows"]) // 2]),
        }


def _waves(times: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """(steps, width): sines and cosines of a time from 0 to 1, in float64."""
    share = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64)
    angles = times[:, None] * (2 * math.pi / (shortest * (longest / shortest) ** share))
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _heads(x: Tensor, size: int) -> Tensor:
    """(batch, tokens, heads · size) → (batch, tokens, heads, size)."""
    return x.unflatten(2, (-1, size))


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the halves of a head paired."""
    cosine, sine = turns
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def _attended(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """(batch, tokens, heads, size) each; several heads of q share one of k and v. allowed: (batch,
    1, tokens of q, tokens of k). Gives (batch, tokens, heads · size)."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, allowed, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def _behind(layer: Any, x: Tensor, attended: Tensor) -> Tensor:
    """What a layer makes of its input and of what its heads found."""
    x = x + layer.self_attn.o_proj(attended)
    made: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return made
