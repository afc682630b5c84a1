"""Cosine with the first token.

How nearly parallel the hidden states are to that of the first token, by layer.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.FirstCosine()])
figure = sinkscope.figures.first_cosine(record)
