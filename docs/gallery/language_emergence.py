"""A small language model over training.

Trained here for 40 steps only, to show the form of the figure: no sink has grown yet.
"""

import sinkscope

sizes = dict(steps=40, layers=2, width=64, length=64, evaluated=16, every=20, cache_size=16)
record = sinkscope.lab.language_model(["softmax", "softmax1"], **sizes)
figure = sinkscope.figures.language_emergence(record)
