"""H2O and TOVA by their definitions: one query, one text, one head at a time, in float64, with plain lists."""

from __future__ import annotations

import copy

import torch
from transformers import AttentionInterface, AttentionMaskInterface


def run(model, ids, rule, budget, recent, chunk=1):
    """Logits, each layer's maps [sequence, head, query, key], and the places held at the end [layer][text][kv_head].

    Args:
        rule: "h2o", where a key's score is all the attention it got, averaged over the heads that share it; or "tova",
            where it is what the last query gave it, averaged over all heads.
    """
    model = copy.deepcopy(model).double()
    maps, ends = [], []

    def attention(module, query, key, value, mask, scaling=None, **_):
        sequences, heads, tokens, _ = query.shape
        group = heads // key.shape[1]
        output, seen = torch.zeros_like(query), query.new_zeros(sequences, heads, tokens, tokens)
        held_in_the_end = []
        for text in range(sequences):
            held = [[] for _ in range(key.shape[1])]
            scores = [{} for _ in range(key.shape[1])]
            for at in range(tokens):
                for kv_head in range(key.shape[1]):
                    held[kv_head].append(at)
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        logits = (key[text, kv_head, held[kv_head]] @ query[text, head, at]) * scaling
                        weights = logits.softmax(-1)
                        seen[text, head, at, held[kv_head]] = weights
                        output[text, head, at] = weights @ value[text, kv_head, held[kv_head]]
                given = seen[text, :, at]
                for kv_head in range(key.shape[1]):
                    own = given[kv_head * group : (kv_head + 1) * group].mean(0) if rule == "h2o" else given.mean(0)
                    for place in held[kv_head]:
                        before = scores[kv_head].get(place, 0.0) if rule == "h2o" else 0.0
                        scores[kv_head][place] = before + float(own[place])
                if (at + 1) % chunk == 0:
                    for kv_head in range(key.shape[1]):
                        while len(held[kv_head]) > budget:
                            older = held[kv_head][: len(held[kv_head]) - recent]
                            # of equal scores the younger key goes
                            held[kv_head].remove(min(older, key=lambda place: (scores[kv_head][place], -place)))
            held_in_the_end.append(held)
        maps.append(seen)
        ends.append(held_in_the_end)
        return output.transpose(1, 2).contiguous(), None

    AttentionInterface.register("naive_scored", attention)
    AttentionMaskInterface.register("naive_scored", lambda *a, **k: None)
    model.set_attn_implementation("naive_scored")
    with torch.no_grad():
        return model(ids, use_cache=False).logits, maps, ends
