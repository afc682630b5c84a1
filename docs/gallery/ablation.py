"""How many sinks.

Perplexity for each number of sinks in a cache of the same size.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_tokens(tokenizer, limit=768)
table = sinkscope.ablate(model, ids, sinks=[0, 1, 4], cache_size=128)
figure = sinkscope.figures.ablation(table)
