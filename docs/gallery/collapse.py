"""The collapse, taken apart.

What is left of the sinks, and the perplexity with it: 16 segments of the King James Bible, cache 256.
"""

import sinkscope

record = sinkscope.open_record("assets/collapse.nc")  # of sinkscope.decompose
figure = sinkscope.figures.collapse(record)
