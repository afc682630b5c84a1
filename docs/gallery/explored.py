"""One head's map and the losses beside it.

What the explorer saves as a figure: the map of a head, and the loss along the text.
"""

import sinkscope

model, tokenizer = sinkscope.load()
app = sinkscope.explore(model, tokenizer, length=96)
app.controller.change(kind="window", window=32)
app.wait()
app.save_to("explored")
app.close()
record = sinkscope.open_record("explored/view.nc")
figure = sinkscope.figures.explored(record)
