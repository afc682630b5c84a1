"""How a sink grows.

Bigram-Backcopy, one layer, one head, seven ways to normalise, eight seeds (after Guo et al. 2024).
"""

import sinkscope

record = sinkscope.open_record("assets/emergence.nc")  # of sinkscope.lab.bigram_backcopy
figure = sinkscope.figures.emergence(record)
