"""Attention by distance.

How much attention goes to the token d places back, one line a layer.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.DistanceProfile()])
figure = sinkscope.figures.distance_profile(record)
