"""Time and memory per token.

Measured on the machine that drew it, while it did other work: read the lines against each other.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_tokens(tokenizer, limit=192)
table = sinkscope.timing_table(sinkscope.run_timing(model, ids, cache_sizes=[32, 64, 128], repeats=3))
figure = sinkscope.figures.decode_cost(table)
