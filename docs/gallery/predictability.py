"""Where the next token is easy.

Sink mass against the entropy of the next token: do heads park where there is little to do?
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=256, count=4)
record = sinkscope.predictability(model, ids)
figure = sinkscope.figures.predictability(record)
