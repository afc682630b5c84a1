"""Interventions, each above its control.

Sinks evicted, the start shifted: perplexity and sink mass, beside those of a control.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
interventions = [sinkscope.EvictKeys("sinks"), sinkscope.Shift(16)]
record = sinkscope.run_interventions(model, ids, interventions, draws=3)
figure = sinkscope.figures.effects(record)
