"""Attention on the first token, by length.

The mass falls as the text grows, the null falls faster. So a multiple of the null says little without its T.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=256, count=4)
record = sinkscope.measure(model, ids, tokenizer=tokenizer)
figure = sinkscope.figures.mass_by_length(record)
