"""Which figures draw streaming records and tables; all others draw captured records."""

from __future__ import annotations

from sinkscope import figures

STREAMED = ("ablation", "decode_cost", "log_perplexity")
CAPTURED = [name for name in figures.__all__ if name not in STREAMED]
