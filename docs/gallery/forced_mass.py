"""What eviction forces on the other keys.

In closed form, from one dense pass: each remaining weight is multiplied by 1 / (1 − m).
"""

import sinkscope

model, tokenizer = sinkscope.load()
ids = sinkscope.read_segments(tokenizer, length=128, count=4)
record = sinkscope.measure(model, ids, [sinkscope.EvictionEffect()])
figure = sinkscope.figures.forced_mass(record)
