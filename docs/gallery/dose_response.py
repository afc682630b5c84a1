"""A dial on the sink's logit.

A bias on the logit of the first key, beside the same bias on other keys.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.dose_response(model, ids[:2], [-float("inf"), -2.0, 0.0, 2.0])
figure = sinkscope.figures.dose_response(record)
