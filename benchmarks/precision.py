"""How far numbers agree in each precision, and wherever the weights are kept: the table of docs/precision.md.

    python benchmarks/precision.py [WORD ...]

The demo model reads the first tokens of the built-in text, in all forms whose names hold the words given; where all
are, assets/precision.csv is written anew. Two comparisons are with the same model, in the same precision: maps with
those of its eager attention, and losses under a policy, read in blocks, with reading one token at a time with a
`SinkCache`. The other two are with the model in float32.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import sinkscope as S
from sinkscope.hf.caches import with_cache

TOKENS = 160
POLICY = S.SinkWindow(4, 60)
COLUMNS = [
    "the model",
    "map, to its own eager map",
    "loss in blocks, to one by one",
    "map, to float32",
    "loss, to float32",
]
KEPT = Path(__file__).parents[1] / "assets" / "precision.csv"


def models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The demo model in every form, by name."""

    def load(**options: Any) -> nn.Module:
        return S.load(**options)[0]

    def int8() -> nn.Module:
        return torch.ao.quantization.quantize_dynamic(load(), {nn.Linear}, dtype=torch.qint8)

    def offloaded() -> nn.Module:
        folder = Path(tempfile.mkdtemp())
        load().save_pretrained(folder)
        layers = {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(30)}
        places = {
            "model.embed_tokens": "disk",
            "model.norm": "cpu",
            "model.rotary_emb": "cpu",
            "lm_head": "disk",
        } | layers
        return AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=folder / "off").eval()

    def compiled(**options: Any) -> nn.Module:
        model = torch.compile(load(**options), backend="aot_eager")
        model(torch.zeros(1, 8, dtype=torch.long))  # so that there is a trace that must not be used
        return model

    def untied() -> nn.Module:
        model = load()
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model

    def adapted(merged: bool = False, **options: Any) -> nn.Module:
        import peft

        torch.manual_seed(0)  # of half of the adapter
        model = peft.get_peft_model(load(**options), peft.LoraConfig(r=8, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, weights in model.named_parameters():
                if "lora_B" in name:
                    weights.copy_(0.01 * torch.randn(weights.shape))
        return model.eval().merge_and_unload() if merged else model.eval()

    yield "float32", load
    yield "float32, untied head", untied
    yield "float32, compiled", compiled
    yield "float32, offloaded to CPU and disk", offloaded
    yield "bfloat16", lambda: load(dtype="bfloat16")
    yield "bfloat16, compiled", lambda: compiled(dtype="bfloat16")
    yield "float16", lambda: load(dtype="float16")
    yield "int8 layers (torch.ao, dynamic)", int8
    yield "float32, LoRA", adapted
    yield "float32, LoRA merged", lambda: adapted(merged=True)
    yield "bfloat16, LoRA", lambda: adapted(dtype="bfloat16")


@torch.no_grad()
def eager_maps(model: nn.Module, ids: Tensor) -> Tensor:
    """The model's own maps [layer, head, query, key]."""
    model.set_attn_implementation("eager")
    maps = torch.stack(model(ids, output_attentions=True, use_cache=False).attentions)[:, 0].float()
    model.set_attn_implementation("sdpa")
    return maps


@torch.no_grad()
def one_by_one(model: nn.Module, ids: Tensor) -> Tensor:
    """Losses [token] with a cache that keeps what the policy keeps."""
    with S.SinkCache(model, *POLICY.kept) as cache:
        logits = [model(ids[:, at : at + 1], **with_cache(model, cache)).logits[0] for at in range(ids.shape[1] - 1)]
    return F.cross_entropy(torch.cat(logits).float(), ids[0, 1:], reduction="none")


def row(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    maps = torch.from_numpy(S.attention_maps(model, ids).values)
    losses = torch.from_numpy(S.perplexity(model, ids, [S.Dense(), POLICY], progress=False).nll.values)[:, 0, 1:]
    return {"maps": maps, "eager": eager_maps(model, ids), "losses": losses, "stepped": one_by_one(model, ids)}


def largest(one: Tensor, two: Tensor) -> str:
    return f"{float((one - two).abs().max()):.1e}"


def main() -> None:
    warnings.simplefilter("ignore")
    _, tokenizer = S.load()
    ids, references = S.read_tokens(tokenizer, limit=TOKENS)[:1], {}
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---|---|---|---|---|")
    rows = []
    for name, make in models():
        if not all(word in name for word in sys.argv[1:]):
            continue
        found = row(make(), ids)
        kind = "LoRA" if "LoRA" in name else ""
        truth = references.setdefault(kind, found)
        cells = [
            largest(found["maps"], found["eager"]),
            largest(found["losses"][1], found["stepped"]),
            "-" if truth is found else largest(found["maps"], truth["maps"]),
            "-" if truth is found else largest(found["losses"], truth["losses"]),
        ]
        rows.append([name, *cells])
        print(f"| {' | '.join(rows[-1])} |", flush=True)
    if not sys.argv[1:]:
        pd.DataFrame(rows, columns=COLUMNS).to_csv(KEPT, index=False)


if __name__ == "__main__":
    main()
