"""What each position receives.

Importance α of every key of one text, beside the null. Peaks carry their token's text.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_tokens(tokenizer, limit=512)
record = sinkscope.measure(model, ids, [sinkscope.Received()], tokenizer=tokenizer)
figure = sinkscope.figures.received_by_position(record)
