"""Loss along a text, under four policies.

3,072 tokens of the King James Bible, caches of 256 tokens. The window's loss rises when the first token leaves.
"""

import sinkscope

record = sinkscope.open_record("assets/policies.nc")  # of sinkscope.perplexity
figure = sinkscope.figures.log_perplexity(record)
