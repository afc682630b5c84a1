"""Attention on the first tokens, by layer.

One dot is a head. Bands are 95% intervals over the sequences; dotted lines are the nulls.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, tokenizer=tokenizer)
figure = sinkscope.figures.mass_by_layer(record)
