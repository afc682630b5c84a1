"""Attention rollout.

The share of the first token in rollout, beside the attention of each layer alone. It knows no values.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=64, count=2)
record = sinkscope.measure(model, ids, [sinkscope.Maps(resolution=None)])
figure = sinkscope.figures.rollout(record)
