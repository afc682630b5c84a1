"""What sinks hand on.

The share of each head's output in the span of its sinks' values, beside that of as many other values.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=3)
record = sinkscope.sink_tags(model, ids)
figure = sinkscope.figures.sink_tags(record)
