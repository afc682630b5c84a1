"""Heads that could stream.

Attention inside sinks and window, and the error of each head that streams.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.Reach()])
figure = sinkscope.figures.reach(record)
