"""What each part of an image receives.

Drawn over the picture. The model here has random weights and the picture is noise, to show the form of the figure.
"""

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

import sinkscope

words = dict(model_type="llama", vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2)
eye = dict(model_type="clip_vision_model", hidden_size=32, intermediate_size=64, num_hidden_layers=2, image_size=32)
config = LlavaConfig(
    text_config=dict(words, num_attention_heads=4, num_key_value_heads=4),
    vision_config=dict(eye, num_attention_heads=4, patch_size=8),
    image_token_index=99,
)
torch.manual_seed(0)
model = LlavaForConditionalGeneration(config).eval()
ids = torch.cat([torch.arange(3, 9), torch.full((16,), 99), torch.arange(20, 34)])[None]
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.rand(1, 3, 32, 32)}
record = sinkscope.measure(model, inputs, [sinkscope.Received()])  # of a processor, in earnest
figure = sinkscope.figures.image_grid(record)
