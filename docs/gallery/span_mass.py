"""Attention between parts of a chat.

From each part of the chat to each, beside the null of even attention. The template is what nobody said.
"""

import sinkscope

model, tokenizer = sinkscope.load()
messages = [{"role": "user", "content": "Name one river of Eden."}]
record = sinkscope.generate_record(model, tokenizer, messages, max_new_tokens=16)
figure = sinkscope.figures.span_mass(record)
