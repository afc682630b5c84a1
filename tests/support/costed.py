"""What costs are counted of: families of all kinds of attention, and the four ways to attend."""

from __future__ import annotations

from sinkscope.policies import Dense, Recompute, SinkWindow, Window

FAMILIES = ("llama", "gpt_neox", "gemma2", "deepseek_v3", "falcon_rotary", "gpt_oss", "mixtral", "mistral_sliding")
POLICIES = (Dense(), Window(6), Recompute(6), SinkWindow(2, 4))
