"""Small random configurations of transformers' architectures, called as their users do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from catalogue import Made, image
from torch import Tensor

_VOCABULARY = 200
_TOKENS = 16
_WIDTH = {"hidden_size": 64, "intermediate_size": 128}
_DEPTH = {"num_hidden_layers": 2, "num_attention_heads": 4}
_PICTURE = {"image_size": 32, "patch_size": 8}
_CAUSAL = {
    "vocab_size": _VOCABULARY,
    **_WIDTH,
    **_DEPTH,
    "num_key_value_heads": 2,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SEGFORMER = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [16, 32, 64, 128],
    "decoder_hidden_size": 64,
    "num_attention_heads": [1, 2, 4, 8],
}
_MOBILEVIT = {
    "image_size": 64,
    "hidden_sizes": [48, 64, 80],
    "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 160],
    "num_attention_heads": 4,
}
_GPT2 = {
    "vocab_size": _VOCABULARY,
    "n_positions": 64,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DISTILBERT = {"vocab_size": _VOCABULARY, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4}
_WHISPER = {
    "vocab_size": _VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "num_mel_bins": 40,
    "max_source_positions": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5 = {"vocab_size": _VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2}


def _tokens() -> dict[str, Tensor]:
    ids = torch.randint(3, _VOCABULARY, (1, _TOKENS))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _pixels(side: int) -> dict[str, Tensor]:
    return {"pixel_values": image(3, side, side)}


def _make(
    architecture: str,
    config: str,
    settings: dict[str, Any],
    inputs: Callable[[], dict[str, Tensor]],
    attention: str | None = None,
) -> Made:
    import transformers

    transformers.logging.set_verbosity_error()
    chosen = {"attn_implementation": attention} if attention else {}
    configuration = getattr(transformers, config)(**settings, **chosen)
    return getattr(transformers, architecture)(configuration), (), inputs()


def _whisper() -> Made:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder = WhisperEncoder(WhisperConfig(**_WHISPER))
    return encoder, (), {"input_features": torch.randn(1, 40, 100)}


_SMALL = partial(_pixels, 32)
_VISION = {**_WIDTH, **_DEPTH, **_PICTURE}
_TEXT = {"vocab_size": _VOCABULARY, "max_position_embeddings": 64, **_WIDTH, **_DEPTH}
_BERT = ("BertForSequenceClassification", "BertConfig", _TEXT, _tokens)
_VIT = ("ViTForImageClassification", "ViTConfig", _VISION, _SMALL)
_LLAMA = ("LlamaForCausalLM", "LlamaConfig", _CAUSAL, _tokens)
_CLIP_TEXT = {**_TEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_DEIT = ("DeiTForImageClassification", "DeiTConfig", _VISION, _SMALL)

MAKERS: dict[str, Callable[[], Made]] = {
    "bert": partial(_make, *_BERT),
    "bert-eager": partial(_make, *_BERT, "eager"),
    "distilbert": partial(
        _make, "DistilBertForSequenceClassification", "DistilBertConfig", _DISTILBERT, _tokens
    ),
    "vit": partial(_make, *_VIT),
    "vit-eager": partial(_make, *_VIT, "eager"),
    "deit": partial(_make, *_DEIT),
    "dinov2": partial(
        _make,
        "Dinov2ForImageClassification",
        "Dinov2Config",
        {**_DEPTH, **_PICTURE, "hidden_size": 64},
        _SMALL,
    ),
    "siglip-vision": partial(_make, "SiglipVisionModel", "SiglipVisionConfig", _VISION, _SMALL),
    "clip-vision": partial(_make, "CLIPVisionModel", "CLIPVisionConfig", _VISION, _SMALL),
    "clip-text": partial(_make, "CLIPTextModel", "CLIPTextConfig", _CLIP_TEXT, _tokens),
    "whisper-encoder": _whisper,
    "t5-encoder": partial(_make, "T5EncoderModel", "T5Config", {**_T5, "num_heads": 4}, _tokens),
    "llama-gqa": partial(_make, *_LLAMA),
    "llama-gqa-eager": partial(_make, *_LLAMA, "eager"),
    "qwen2-gqa": partial(_make, "Qwen2ForCausalLM", "Qwen2Config", _CAUSAL, _tokens),
    "gpt2": partial(_make, "GPT2LMHeadModel", "GPT2Config", _GPT2, _tokens),
    "mobilevit": partial(
        _make,
        "MobileViTForImageClassification",
        "MobileViTConfig",
        _MOBILEVIT,
        partial(_pixels, 64),
    ),
    "segformer": partial(
        _make,
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        _SEGFORMER,
        partial(_pixels, 64),
    ),
}
