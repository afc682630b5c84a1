"""Sink rate against the threshold.

The fraction of heads whose importance α of the first token exceeds ε (Gu et al. 2024), for several lengths.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=16)
record = sinkscope.measure(model, ids, tokenizer=tokenizer)
figure = sinkscope.figures.sink_rate_curve(record)
