"""What a model's configuration says of its numbers, and by which functions it attends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from sinkscope.hf.attention import configurations, own_function
from sinkscope.hf.models import core, has_config

NEUTRAL = {  # fields of a configuration by which no number of a forward pass in eval mode changes
    *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("output_hidden_states", "output_attentions", "return_dict", "use_cache", "initializer_range", "loss_type"),
    *(
        "bos_token_id",
        "eos_token_id",
        "sep_token_id",
        "unk_token_id",
        "tokenizer_class",
        "pretraining_tp",
        "torchscript",
    ),
    *("classifier_dropout", "summary_first_dropout", "initializer_factor", "generation_config"),
}
SILENT = (
    "name_or_path",
    "dropout",
    "pdrop",
    "layerdrop",
    "dropout_prob",
    "drop_path_rate",
)  # endings; most act in training alone
PLACES = {  # attributes of transformers' modules that say nothing about numbers, or follow what was read last
    *("name_or_path", "kernel_config", "loss_type", "gradient_checkpointing", "all_tied_weights_keys", "model_tags"),
    *("hf_device_map", "max_seq_len_cached", "rope_deltas", "is_gradient_checkpointing", "training"),
}


def configuration(model: nn.Module) -> dict[str, Any]:
    """The fields of a model's configuration that can change its numbers, those of its parts by dotted names."""
    told = dict(_fields(core(model).config.to_dict(), "")) if has_config(model) else {}
    known = set(map(id, _tree(core(model).config))) if has_config(model) else set()
    others = set(map(id, configurations(core(model)))) - known
    for path, module in core(model).named_modules():  # one that was given to a part of the model alone
        config: Any = getattr(module, "config", None)
        if id(config) in others:
            others.discard(id(config))
            own = _fields(config.to_dict(), "")
            told |= {f"{path}.config.{name}": value for name, value in own if told.get(name) != value}
    return told


def _tree(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", ()):
        if (part := getattr(config, name, None)) is not None:
            yield from _tree(part)


def _fields(given: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name in sorted(given, key=str):
        value, word = given[name], str(name)
        if word in NEUTRAL or word.endswith(SILENT):
            continue
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{word}.")
        else:
            yield f"{prefix}{word}", value


def attention_functions(model: nn.Module) -> dict[str, tuple[str, Callable[..., Any] | None]]:
    """By part, the implementations of attention and of experts in use, and the function of one of the user's own."""
    found: dict[str, tuple[str, Callable[..., Any] | None]] = {}
    for number, config in enumerate(configurations(core(model))):
        part = str(getattr(config, "model_type", "")) if number else ""
        used = str(config._attn_implementation)
        found[f"attention {part}".strip()] = used, own_function(used, core(model))
        if experts := getattr(config, "_experts_implementation", None):
            found[f"experts {part}".strip()] = str(experts), None
    return found
