"""Massive activations.

The largest entry of each layer's hidden states, beside the median (Sun et al. 2024).
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, tokenizer=tokenizer)
figure = sinkscope.figures.massive_activations(record)
