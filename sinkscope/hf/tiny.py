"""Tiny random models of the types that transformers knows, for checking what holds of all of them.

There is no table of types here: a configuration is taken as its class makes it, and every size in it is cut down by
what its name says it is the size of. `NEEDED` has what a few types have to be told before they can be built or run, and
`VARIANTS` settings that change how a type attends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import quiet_transformers

LAYERS, WIDTH, HEADS, HEAD_WIDTH, VOCABULARY, POSITIONS, WINDOW = 4, 64, 4, 16, 128, 512, 24

LINEAR = ("linear_attention", "conv")  # layers that are no softmax attention, as `layer_types` names them


def _rope(rope_type: str, original: int = WINDOW, **parameters: Any) -> dict[str, Any]:
    return {
        "rope_type": rope_type, "rope_theta": 10_000.0, "original_max_position_embeddings": original, **parameters,
    }  # fmt: skip


NEEDED: dict[str, dict[str, Any]] = {
    "blt": {"use_cache": False},  # its configuration has not what a cache is made from
    "dbrx": {"attn_config": {"rope_theta": 10_000.0}},  # not in its defaults, but in those of its checkpoints
    "dots3_note_text": {
        "sliding_window_size": WINDOW, "swa_num_attention_heads": HEADS, "swa_num_key_value_heads": HEADS,
        "swa_q_lora_rank": HEAD_WIDTH, "swa_kv_lora_rank": HEAD_WIDTH, "swa_head_dim": 2 * HEAD_WIDTH,
        "swa_qk_nope_head_dim": HEAD_WIDTH, "swa_v_head_dim": HEAD_WIDTH,
    },
    "musicgen_decoder": {"num_codebooks": 1},  # tokens of one text, where several are read side by side
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "reformer": {"axial_pos_embds": False},  # two widths that add up to that of the model
    "xlstm": {"qk_dim_factor": 1.0},  # its kernels take no other
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {  # the type and what is changed, and the settings that change it
    "bloom+slow_but_exact": {"slow_but_exact": True},
    "deepseek_v2+q_lora_rank": {"q_lora_rank": None},
    "deepseek_v3+yarn": {"rope_parameters": _rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0)},
    "falcon+alibi": {"alibi": True},
    "falcon+new_decoder_architecture": {"new_decoder_architecture": True},
    "gemma2+attn_logit_softcapping": {"attn_logit_softcapping": 2.0},
    "gemma4_text+attention_k_eq_v": {"attention_k_eq_v": True},
    "gemma4_text+enable_moe_block": {"enable_moe_block": True},
    "gemma4_text+num_kv_shared_layers": {"num_kv_shared_layers": LAYERS // 2},
    "gpt2+scale_attn_by_inverse_layer_idx": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_bigcode+multi_query": {"multi_query": False},
    "granitemoehybrid+position_embedding_type": {"position_embedding_type": "nope"},
    "llama+dynamic": {"rope_parameters": _rope("dynamic", factor=4.0)},
    "llama+linear": {"rope_parameters": _rope("linear", factor=4.0)},
    "llama+llama3": {
        "rope_parameters": _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    },
    "llama+num_key_value_heads": {"num_key_value_heads": 1},
    "llama4_text+floor_scale": {"floor_scale": WINDOW // 4},
    "ministral3+llama_4_scaling_beta": {
        "rope_parameters": _rope("yarn", original=WINDOW // 4, factor=16.0, llama_4_scaling_beta=0.5),
    },
    "mistral+sliding_window": {"sliding_window": None},
    "phi3+longrope": {
        "sliding_window": None,
        "original_max_position_embeddings": POSITIONS // 2,
        "rope_parameters": _rope("longrope", original=POSITIONS // 2, short_factor=[1.1] * 8, long_factor=[4.0] * 8),
    },
    "qwen2+use_sliding_window": {
        "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"] * (LAYERS // 2),
    },
    "qwen3+yarn": {"rope_parameters": _rope("yarn", factor=4.0)},
    "smollm3+no_rope_layers": {"no_rope_layers": [1, 0] * (LAYERS // 2)},
}  # fmt: skip

# The name of a field, and its size in a tiny model; the first that fits the whole name counts, None leaves it alone.
SIZES: list[tuple[str, int | None]] = [
    (r"(task_)?type_vocab_size", None),
    (r".*vocab(ulary)?(_size.*)?", VOCABULARY),
    (r"n_(input|output)_layers|.*kv_heads_per_.*", 1),
    (r"n_recurrent_layers|.*shared_layers|num_layers_per_stack", 2),
    (r".*_period|.*_interval|.*every_n_layers|layer_group_size|.*_pattern", 2),
    (r".*_layer_offset|first_k_dense_replace|num_dense_layers", 1),
    (r".*experts_per_tok.*|(index_|moe_)?top_?k.*|moe_k|.*topk_group|n_group|num_expert_group|.*shared_experts", 2),
    (r".*experts?|zero_expert_num", 4),
    (r"index(er)?_kv_heads", 1),
    (r"(num|n)_kv_heads|.*num_key_value_heads|num_query_groups", 2),
    (r".*mamba.*heads", 2 * WIDTH // HEAD_WIDTH),
    (r".*heads(_per_layer)?|n_head", HEADS),
    (r"qk_head_dim", 2 * HEAD_WIDTH),
    (r"rotary_dim", HEAD_WIDTH // 2),
    (r".*head_?dim|d_head|dim_head|.*head_size|kv_channels|mamba_d_head|d_rel", HEAD_WIDTH),
    (r"(num|n)_.*layers?|n_layers?|(en|de)coder_layers|num_blocks|num_layers|depth", LAYERS),
    (r"mamba_d_ssm|attention_hidden_size", 2 * WIDTH),
    (r".*hidden_size(_global)?|d_model|n_embd|.*embedding_size|emb_dim|.*embed.*_dim|lru_width|.*_(in|out)_dim", WIDTH),
    (r".*_input_size|projection_dim|out_hidden_size", WIDTH),
    (r".*(intermediate|ffn|ff|feed_forward|inner|hidden_dim).*", 96),
    (r".*rank", HEAD_WIDTH),
    (r".*patch_size", 8),
    (r"image_size", 32),
    (
        r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_.*_positions|model_max_length",
        POSITIONS,
    ),
    (r"rel_extent", POSITIONS),
    (r".*window(_size|_len)?|local_attention|.*chunk_?(size|length)|.*block_size", WINDOW),
    (r".*(state|conv_kernel|d_conv|d_state|budget).*", 4),
    (r".*compress_ratio", 2),
]
_PATTERNS = [(re.compile(pattern), size) for pattern, size in SIZES]


def causal_types() -> list[str]:
    """The types that have a causal language model, and their variants, in alphabetical order."""
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    return sorted(known | {name for name in VARIANTS if name.partition("+")[0] in known})


def check_type(model_type: str) -> None:
    """SinkscopeError where a type is none of `causal_types`."""
    if model_type not in (known := causal_types()):
        near = get_close_matches(model_type, known, n=1)
        raise SinkscopeError(
            f"transformers knows no causal language model of the type {model_type!r}; "
            + (f"did you mean {near[0]!r}?" if near else "give another, such as 'llama'.")
        )


def tiny_model(model_type: str, seed: int = 0) -> nn.Module:
    """A causal language model of a type or variant, with random weights that make its attention uneven.

    Raises:
        SinkscopeError: the type is unknown, or no tiny model of it can be built or run.
    """
    check_type(model_type)
    reason: Exception | None = None
    with quiet_transformers():
        for config in _configurations(model_type.partition("+")[0], VARIANTS.get(model_type, {})):
            try:
                torch.manual_seed(seed)
                model = _of_config(config()).eval()
                _roughen(model)
                _check_runs(model)
                return model
            except Exception as error:  # whatever the code of any type may raise
                reason = reason or error
    said = " ".join(f"{type(reason).__name__}: {reason}".split())
    raise SinkscopeError(f"no tiny model of the type {model_type!r} can be built: {said[:300]}")


def eager_twin(model: Any) -> Any:
    """The same model with the attention that transformers calls "eager", which shows its maps."""
    with quiet_transformers():
        twin = type(model)._from_config(model.config, attn_implementation="eager").to(model.dtype).eval()
    twin.load_state_dict(model.state_dict())
    return twin


def _of_config(config: Any) -> Any:
    """A causal language model of a configuration, or of that part of it which the model's class reads."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))]
    return kind._from_config(next((part for part in parts if type(part) is kind.config_class), config))


def _configurations(model_type: str, settings: dict[str, Any]) -> Iterator[Any]:
    """Makers of configurations, the plainest first."""
    default = CONFIG_MAPPING[model_type]
    for changes in (
        {},
        {"fill": True},
        {"fill": True, "rope_by_layer": True},
        *({"fill": True, "layer_types": [other, "full_attention"] * (LAYERS // 2)} for other in LINEAR),
    ):
        yield lambda changes=changes: _shrunk(default(), settings=settings, **changes)


def _shrunk(
    config: PreTrainedConfig,
    *,
    fill: bool = False,
    rope_by_layer: bool = False,
    layer_types: list[str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PreTrainedConfig:
    """A configuration with every size cut down.

    Args:
        config: as its class makes it.
        fill: give numbers that are None by default, too.
        rope_by_layer: give parameters of the rotary embedding for each type of layer.
        layer_types: of the layers; those that the configuration names, each of them once or more, when None.
        settings: what has to be as it is given here; of a configuration within, by its name.
    """
    told = vars(config)
    hints = type(config).__annotations__
    layers = next(
        (told[name] for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if name in told), 0
    )
    given: dict[str, Any] = {}
    for name, value in told.items():
        small = size_of(name)
        if name.startswith("_") or name in ("per_layer_config", "id2label", "label2id") or isinstance(value, bool):
            continue
        if isinstance(value, PreTrainedConfig):
            given[name] = _shrunk(value, fill=fill)
        elif re.search(r"token_ids?$|_index$", name):
            if isinstance(value, int) and value >= VOCABULARY:
                given[name] = VOCABULARY - 1 - len(given) % 20
        elif isinstance(value, int) and value > 1 and small and not (is_derived(config, name) and not fill):
            given[name] = small if "layer" in name or "mamba" in name else min(value, small)
        elif value is None and fill and str(hints.get(name, "")).startswith("int"):
            given[name] = small or 4
        elif isinstance(value, list | tuple) and layers and len(value) == layers:
            distinct = [each for at, each in enumerate(value) if each not in value[:at]]
            given[name] = [min(each, small) if small and type(each) is int else each for each in distinct * LAYERS]
            given[name] = given[name][:LAYERS]
    if "is_decoder" in told:
        given["is_decoder"] = True
    if told.get("kv_lora_rank") and "num_key_value_heads" in given:
        given["num_key_value_heads"] = given.get("num_attention_heads", HEADS)
    if "expand" in told and "num_heads" in given:
        given["num_heads"] = 2 * WIDTH // HEAD_WIDTH
    if "attention_hidden_size" in given:  # of zamba's shared blocks, which read two hidden states; else the width
        if "attention_head_dim" in told:
            given["attention_head_dim"] = given["attention_hidden_size"] // HEADS
        else:
            given["attention_hidden_size"] = WIDTH
    if layer_types:
        given["layer_types" if "layer_types" in told else "attn_layer_indices"] = (
            layer_types if "layer_types" in told else [at for at, kind in enumerate(layer_types) if kind not in LINEAR]
        )
    if rope_by_layer:
        kinds = given.get("layer_types") or told.get("layer_types") or ()
        given["rope_parameters"] = {kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in kinds}
    for name, value in {**NEEDED.get(config.model_type, {}), **(settings or {})}.items():
        if isinstance(given.get(name), PreTrainedConfig):
            value = type(given[name])(**{**given[name].to_diff_dict(), **value})
        given[name] = value
    return type(config)(**given)


def is_derived(config: PreTrainedConfig, name: str) -> bool:
    """Whether a configuration works out a field from others where it is not given."""
    field = getattr(type(config), "__dataclass_fields__", {}).get(name)
    return field is not None and field.default is None


def size_of(name: str) -> int | None:
    """What a field of a configuration is cut down to; None where its name says nothing."""
    return next((size for pattern, size in _PATTERNS if pattern.fullmatch(name)), None)


def _roughen(model: nn.Module) -> None:
    """Larger weights for the projections, so that attention is far from uniform and positions matter.

    Vectors of zeros that are no bias get numbers too: a choice among equals would follow from nothing.
    """
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.dim() == 1 and not name.endswith("bias") and not bool(weights.any()):
                weights.normal_()
            if weights.dim() == 2 and weights.is_floating_point() and "embed" not in name:
                weights.mul_(1.2 * weights.shape[-1] ** -0.5 / weights.std().clamp(min=1e-6))


def _check_runs(model: nn.Module) -> None:
    ids = torch.randint(3, 100, (2, 2 * WINDOW), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = model(ids)
    logits = output[0] if isinstance(output, tuple) else output.logits
    if not bool(logits.isfinite().all()):
        raise ValueError("its logits are not finite")
