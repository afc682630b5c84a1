"""Perplexity against the share of heads that stream.

Heads that need the text least stream first; beside it the other way round.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_tokens(tokenizer, limit=512)
measured = sinkscope.measure(model, ids, [sinkscope.Reach(sinks=[4], windows=[60])])
gates = sinkscope.head_gates(measured)
record = sinkscope.head_split(model, ids, gates, [0.0, 0.5, 1.0], sinks=4, window=60)
figure = sinkscope.figures.head_split(record)
