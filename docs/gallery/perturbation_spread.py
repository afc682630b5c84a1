"""How far one changed token spreads.

The distance that states of later tokens move, with the first token kept and removed.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=96, count=4)
record = sinkscope.perturbation_spread(model, ids)
figure = sinkscope.figures.perturbation_spread(record)
