"""Which figures draw streaming records and tables, or records of training; all others draw captured records."""

from __future__ import annotations

from sinkscope import figures

STREAMED = ("ablation", "decode_cost", "log_perplexity")
TRAINED = ("emergence", "language_emergence")
CAPTURED = [name for name in figures.__all__ if name not in (*STREAMED, *TRAINED)]
