"""Mean logits and mean probabilities, StreamingLLM's Figures 2 and 12.

Xiao et al. 2023 average over 256 sentences of 16 tokens. Here: 64 pieces of 16 tokens.
The top row has logits, the bottom row probabilities.
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=16, count=64)
record = sinkscope.measure(model, ids, [sinkscope.MeanLogits(tokens=16)])
figure = sinkscope.figures.mean_maps(record, heads=[(0, 0), (1, 0), (12, 3), (18, 8)])
