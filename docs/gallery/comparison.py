"""Sink strength and collapse, several texts or models.

Here one model on two texts; with `compare` of saved reports it is one point a model.
"""

import sinkscope

model, tokenizer = sinkscope.load()
rows = []
for text in (None, "demo:ferry"):
    ids = sinkscope.read_segments(tokenizer, text, length=256, count=4)
    losses = sinkscope.perplexity(model, ids, [sinkscope.Window(64), sinkscope.SinkWindow(4, 60)])
    rows.append((sinkscope.measure(model, ids, text=text or "demo"), losses))
table = sinkscope.compare(rows)
figure = sinkscope.figures.comparison(table)
