"""Tiny models of several streams of attention, with something for them to read, and the maps that they make alone."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from sinkscope.models.facts import find_streams
from tests.support.zoo import with_uneven_attention

ANSWER = 9  # tokens that PaliGemma's tiny text ends with, behind a prefix in which all see each other
IMAGE = 100  # the id of the token that stands for a part of an image

_TEXT: dict[str, Any] = dict(
    vocab_size=128, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip
_PLANE = dict(_TEXT, rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3]))
_TOWER = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
)
_PACKED = dict(
    depth=2, hidden_size=32, out_hidden_size=64, num_heads=2, patch_size=8, temporal_patch_size=2,
    spatial_merge_size=2, in_channels=3, intermediate_size=48,
)  # fmt: skip
_MARKS = dict(image_token_id=IMAGE, video_token_id=101, vision_start_token_id=102, vision_end_token_id=103)
_SEQ2SEQ = dict(
    vocab_size=128, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
    decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0,
    decoder_start_token_id=0, eos_token_id=None, forced_eos_token_id=None,
)  # fmt: skip

IMAGE_TEXT: dict[str, dict[str, Any]] = {
    "llava": dict(
        text_config=dict(_TEXT, model_type="llama"),
        vision_config=dict(_TOWER, model_type="clip_vision_model"),
        image_token_index=IMAGE,
    ),
    "gemma3": dict(
        text_config=dict(
            _TEXT, sliding_window=12, query_pre_attn_scalar=16,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        vision_config=dict(_TOWER, vision_use_head=False), image_token_index=IMAGE, mm_tokens_per_image=4,
    ),
    "idefics3": dict(
        text_config=dict(_TEXT, model_type="llama"), vision_config=_TOWER, image_token_id=IMAGE, scale_factor=2
    ),
    "qwen2_vl": dict(
        text_config=_PLANE, vision_config=dict(_PACKED, embed_dim=32, hidden_size=64, mlp_ratio=2), **_MARKS
    ),
    "qwen2_5_vl": dict(
        text_config=_PLANE, vision_config=dict(_PACKED, window_size=16, fullatt_block_indexes=[1]), **_MARKS
    ),
    "qwen3_vl": dict(
        text_config=_PLANE,
        vision_config=dict(_PACKED, num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        **_MARKS,
    ),
    "mllama": dict(
        text_config=dict(
            _TEXT, num_hidden_layers=4, cross_attention_layers=[1, 3],
            rope_parameters=dict(rope_type="default", rope_theta=10000.0),
        ),
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_global_layers=1, attention_heads=2, intermediate_size=48,
            image_size=32, patch_size=8, max_num_tiles=1, supported_aspect_ratios=[[1, 1]],
            intermediate_layers_indices=[0], vision_output_dim=64,
        ),
        image_token_index=IMAGE,
    ),
    "paligemma": dict(
        text_config=dict(_TEXT, model_type="gemma"), image_token_index=IMAGE, projection_dim=64,
        vision_config=dict(_TOWER, model_type="siglip_vision_model", vision_use_head=False),
    ),
    "gemma4": dict(
        text_config=dict(
            _TEXT, sliding_window=12, layer_types=["sliding_attention", "full_attention", "full_attention"],
            vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, num_kv_shared_layers=1,
        ),
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
            intermediate_size=48, patch_size=8, pooling_kernel_size=2, position_embedding_size=64,
        ),
        image_token_id=IMAGE, audio_config=None,
    ),
    "internvl": dict(
        text_config=dict(_TEXT, model_type="qwen2"),
        vision_config=dict(_TOWER, image_size=[32, 32], patch_size=[8, 8]),
        image_token_id=IMAGE, downsample_ratio=0.5, image_seq_length=4,
    ),
    "smolvlm": dict(
        text_config=dict(_TEXT, model_type="llama"), vision_config=_TOWER, image_token_id=IMAGE, scale_factor=2
    ),
    "mistral3": dict(
        text_config=dict(_TEXT, model_type="mistral"), vision_config=dict(_TOWER, model_type="pixtral", head_dim=16),
        image_token_index=IMAGE, spatial_merge_size=2,
    ),
    "glm4v": dict(
        text_config=_PLANE, vision_config=dict(_PACKED, image_size=32), image_token_id=IMAGE, video_token_id=101,
        image_start_token_id=104, image_end_token_id=105, video_start_token_id=106, video_end_token_id=107,
    ),
    "lfm2_vl": dict(
        text_config=dict(_TEXT, model_type="lfm2", layer_types=["conv", "full_attention", "full_attention"]),
        vision_config=dict(_TOWER, model_type="siglip2_vision_model", num_patches=16, vision_use_head=False),
        image_token_id=IMAGE, downsample_factor=2, projector_hidden_size=64,
    ),
    "qwen3_5": dict(
        text_config=dict(
            _PLANE, layer_types=["linear_attention", "full_attention", "linear_attention"], linear_num_key_heads=2,
            linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        ),
        vision_config=dict(_PACKED, num_position_embeddings=16), **_MARKS,
    ),
}  # fmt: skip
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_5")  # images behind each other in one row

ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "t5": dict(
        vocab_size=128, d_model=32, d_ff=48, num_layers=3, num_heads=2, d_kv=16, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=None, relative_attention_num_buckets=8, relative_attention_max_distance=32,
    ),
    "bart": _SEQ2SEQ,
    "marian": _SEQ2SEQ,
    "whisper": dict(
        _SEQ2SEQ, num_mel_bins=8, max_source_positions=20, max_target_positions=64, bos_token_id=1,
    ),
}  # fmt: skip


def build_several(name: str, implementation: str | None = None) -> nn.Module:
    """A fresh copy of a family's tiny model, the same weights every time."""
    return copy.deepcopy(_build(name, implementation))


@cache
def _build(name: str, implementation: str | None) -> nn.Module:
    factory: Any = AutoModelForImageTextToText if name in IMAGE_TEXT else AutoModelForSeq2SeqLM
    factory = AutoModelForSpeechSeq2Seq if name == "whisper" else factory
    config = AutoConfig.for_model(name, **copy.deepcopy((IMAGE_TEXT | ENCODER_DECODERS)[name]))
    given = {} if implementation is None else {"attn_implementation": implementation}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_uneven_attention(factory.from_config(config, **given)).eval()


def inputs_of(name: str, batch: int = 2) -> dict[str, Tensor]:
    """What a processor of the family makes of `batch` texts with an image each, or what an encoder-decoder reads."""
    generator = torch.Generator().manual_seed(3)

    def words(count: int) -> Tensor:
        return torch.randint(3, 90, (batch, count), generator=generator)

    def pixels(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if name in ENCODER_DECODERS:
        read = {"input_features": pixels(batch, 8, 40)} if name == "whisper" else {"input_ids": words(17)}
        return read | {"decoder_input_ids": words(11)}
    marks = {"llava": 16, "paligemma": 16, "mllama": 1}.get(name, 4)
    ids = torch.cat([words(6), torch.full((batch, marks), IMAGE), words(14)], 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in PACKED:
        grid = torch.tensor([[1, 4, 4]] * batch)
        images = {"pixel_values": pixels(16 * batch, 3 * 2 * 8 * 8), "image_grid_thw": grid}
        return given | images | {"mm_token_type_ids": (ids == IMAGE).int()}
    if name == "mllama":
        ratios = {"aspect_ratio_ids": torch.ones(batch, 1).long(), "aspect_ratio_mask": torch.ones(batch, 1, 1).long()}
        looking = {"cross_attention_mask": torch.ones(*ids.shape, 1, 1).long()}
        return given | ratios | looking | {"pixel_values": pixels(batch, 1, 1, 3, 32, 32)}
    if name == "gemma4":
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(-1)  # column and row of each patch
        images = {"pixel_values": pixels(batch, 16, 3 * 8 * 8), "image_position_ids": places.expand(batch, 16, 2)}
        return given | images | {"mm_token_type_ids": (ids == IMAGE).int()}
    if name == "lfm2_vl":
        shapes = {
            "spatial_shapes": torch.tensor([[4, 4]] * batch),
            "pixel_attention_mask": torch.ones(batch, 16).long(),
        }
        return given | shapes | {"pixel_values": pixels(batch, 16, 3 * 8 * 8)}
    each = (1, 3, 32, 32) if name in ("idefics3", "smolvlm") else (3, 32, 32)
    beside = {
        "gemma3": {"token_type_ids": (ids == IMAGE).int()},
        "paligemma": {"token_type_ids": (torch.arange(ids.shape[1]) >= ids.shape[1] - ANSWER).int().expand_as(ids)},
        "mistral3": {"image_sizes": torch.tensor([[32, 32]] * batch)},
    }
    return given | beside.get(name, {}) | {"pixel_values": pixels(batch, *each)}


@torch.no_grad()
def own_maps(name: str, given: dict[str, Tensor]) -> dict[str, dict[int, list[Tensor]]]:
    """By stream and layer, what softmax gave in each call of a model's own eager attention."""
    model, maps, watches = build_several(name, "eager"), {}, []
    for stream, anatomy in find_streams(model).items():
        for part in anatomy.parts:
            calls = maps.setdefault(stream, {}).setdefault(part.number, [])
            watches += _watched(part.attention, calls)
    model(**given, use_cache=False)
    for hook in watches:
        hook.remove()
    return maps


def maps_by_image(calls: list[Tensor]) -> Any:
    """Maps [head, query, key] of each of two images: of one call, of one for each or each window, of a row."""
    if len(calls) == 1 and len(calls[0]) == 1:
        half = calls[0].shape[-1] // 2
        assert not calls[0][..., :half, half:].any() and not calls[0][..., half:, :half].any()
        return [calls[0][0, :, :half, :half], calls[0][0, :, half:, half:]]
    if len(calls) <= 2:
        return torch.cat(calls)
    half = len(calls) // 2
    return [
        torch.stack([torch.block_diag(*(call[0, head] for call in part)) for head in range(part[0].shape[1])])
        for part in (calls[:half], calls[half:])
    ]


def _watched(attention: nn.Module, calls: list[Tensor]) -> list[Any]:
    watch = _Softmax(calls)
    return [
        attention.register_forward_pre_hook(lambda *_: watch.__enter__() and None),
        attention.register_forward_hook(lambda *_: watch.__exit__(None, None, None)),
    ]


class _Softmax(TorchFunctionMode):
    def __init__(self, calls: list[Tensor]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "softmax" and result.dim() == 4:
            self.calls.append(result.detach())
        return result
