"""Tokens parallel to the first one.

Birth and lifetime of tokens whose states point the way of the first one's while that is a sink. The demo model has none
at the published threshold of 0.9, so a lower one is drawn.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=2)
record = sinkscope.measure(model, ids, [sinkscope.FirstCosine(), sinkscope.Compression()], tokenizer=tokenizer)
figure = sinkscope.figures.secondary_sinks(record, parallel=0.3)
