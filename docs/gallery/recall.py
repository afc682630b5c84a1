"""What a cache still knows.

The loss of a passage the second time it comes, against how far back it first came.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_tokens(tokenizer, limit=1024)
policies = [sinkscope.Dense(), sinkscope.Window(64), sinkscope.SinkWindow(4, 60)]
record = sinkscope.recall(model, ids, policies, distances=[32, 128], passage=16, passages=4)
figure = sinkscope.figures.recall(record)
