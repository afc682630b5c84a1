"""Which figures draw records and tables of streaming, training or experiments; all others draw captured ones."""

from __future__ import annotations

from sinkscope import figures

STREAMED = ("ablation", "decode_cost", "log_perplexity")
TRAINED = ("emergence", "language_emergence")
EXPERIMENTS = ("collapse", "comparison", "dose_response", "effects", "forced_mass", "predictability")
CAPTURED = [
    name
    for name in figures.__all__
    if hasattr(getattr(figures, name), "describe") and name not in (*STREAMED, *TRAINED, *EXPERIMENTS)
]
