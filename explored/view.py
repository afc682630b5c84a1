# layer 18, head 8 of SmolLM2-135M-Instruct.Q4_1.gguf, under window 32
# in the explorer: sinkscope.explore(..., state='text=ff582d86e290&model=3dd0699fc95c&policy=window&window=32&head=18.8')
import torch
import sinkscope

model, tokenizer = sinkscope.load()  # or the model that was explored: SmolLM2-135M-Instruct.Q4_1.gguf
ids = sinkscope.read_tokens(tokenizer, limit=96)
policy = sinkscope.Window(size=32)
normaliser = None

probe = sinkscope.Maps(layers=[18], heads=[8], resolution=None)
with torch.no_grad(), sinkscope.attached(model, policy=policy, normaliser=normaliser, probes=[probe]) as scope:
    model(ids)
attention_map = scope.array("attention_map")[0, 0, 0]  # [query, key]

tokens = slice(34, None)  # whose losses are compared
dense = sinkscope.perplexity(model, ids, [sinkscope.Dense()]).sel(token=tokens)
print("dense", float(sinkscope.ppl(dense)[0]))
changed = sinkscope.perplexity(model, ids, [policy], normaliser=normaliser).sel(token=tokens)
print("changed", float(sinkscope.ppl(changed)[0]))
# sinkscope wrote this file; SHA-256 of all bytes before this line: 8f533ea44da44ad0c17b2da194411bdda4c1e2d85d0c358af20c4f2e19092130
