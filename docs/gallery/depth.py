"""Hidden states over depth.

Matrix entropy, anisotropy, norm of the first token's state, kurtosis and sink rate (Queipo-de-Llano et al. 2025).
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.Compression(), sinkscope.SinkMass(first=1)])
figure = sinkscope.figures.depth(record)
