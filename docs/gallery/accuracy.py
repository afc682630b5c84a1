"""A needle, found or not.

Share of right answers against distance, beside chance. Few trials, so wide intervals.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_tokens(tokenizer, limit=2048)
policies = [sinkscope.Dense(), sinkscope.SinkWindow(4, 92)]
record = sinkscope.needle_recall(model, tokenizer, ids, policies, lengths=[96, 160], depths=[0.1, 0.9], trials=3)
figure = sinkscope.figures.accuracy(record)
