"""Loading through transformers' automatic classes, without its chatter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def auto_class(config: Any) -> Any:
    """AutoModelForCausalLM for a decoder with a language head, else AutoModel (encoders, vision).

    config: of transformers. Its `architectures` decide; where it names none, a type that has a causal class
        and no masked one is a decoder.
    """
    from transformers import AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    names = config.architectures or []
    if names:
        causal = {
            name
            for value in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
            for name in ((value,) if isinstance(value, str) else value)
        }
        remote = getattr(config, "auto_map", None) or {}
        is_causal = any(name in causal for name in names) or "AutoModelForCausalLM" in remote
    else:
        kind = config.model_type
        is_causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return AutoModelForCausalLM if is_causal else AutoModel


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No log lines below errors and no progress bars from transformers inside the block."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
