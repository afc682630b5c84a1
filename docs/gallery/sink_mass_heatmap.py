"""Attention on the first token, every head.

Each cell is a head: the mean attention it gives to the first token. The mark on the scale is the uniform null.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, tokenizer=tokenizer)
figure = sinkscope.figures.sink_mass_heatmap(record)
