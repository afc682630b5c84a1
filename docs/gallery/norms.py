"""Norms of keys and values.

A sink's value is small where the sink is a no-op: it takes attention and hands on little.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, tokenizer=tokenizer)
figure = sinkscope.figures.norms(record)
