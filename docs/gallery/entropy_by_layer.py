"""Entropy of attention, by layer.

Nats, each head a dot. The null is even attention over the keys that a query sees.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.Entropy()])
figure = sinkscope.figures.entropy_by_layer(record)
