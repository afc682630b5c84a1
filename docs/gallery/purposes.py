"""No-op or broadcast.

Each head by what its strongest key hands on, and by what evicting it would change (after Fesser et al. 2026).
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.SinkPurpose(), sinkscope.EvictionEffect()])
figure = sinkscope.figures.purposes(record)
