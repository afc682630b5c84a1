"""What the package attention_sinks 0.4.0 gives for the models of this folder: makes attention_sinks.npz.

It needs an environment of its own, since that package works with transformers 4.34.0 alone. The demo model is put into
a folder by sinkscope, and read from there:

    python -m tests.parity.demo FOLDER
    pip install attention_sinks==0.4.0 "torch==2.13.0" "numpy<2" einops   # in the other environment
    python -m tests.parity.attention_sinks FOLDER

Each text is read one token at a time with the cache of that package. Tiny models then go on with it greedily.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from tests.parity.models import DEMO_CACHE, FAMILIES, NEW, RECENT, SINKS, filled, text


def logits_of(folder: str, ids: torch.Tensor, sinks: int, recent: int, new: int = 0) -> tuple[torch.Tensor, ...]:
    """Logits [token, vocabulary] after each token of the text and of its greedy continuation, and all tokens."""
    import attention_sinks

    model = attention_sinks.AutoModelForCausalLM.from_pretrained(
        folder, attention_sink_size=sinks, attention_sink_window_size=recent
    ).eval()
    found, past, tokens = [], None, ids.shape[1]
    with torch.no_grad():
        for at in range(tokens + new):
            output = model(ids[:, at : at + 1], past_key_values=past, use_cache=True)
            past = output.past_key_values
            found.append(output.logits[0, -1])
            if at + 1 == ids.shape[1]:
                ids = torch.cat([ids, found[-1].argmax()[None, None]], 1)
    return torch.stack(found), ids[0, :-1]


def main() -> None:
    import transformers

    kept = {}
    for family, settings in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = transformers.AutoConfig.for_model(family, **settings)
            filled(transformers.AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
            logits, ids = logits_of(folder, text(), SINKS, RECENT, NEW)
        kept |= {f"{family} logits": logits.numpy(), f"{family} ids": ids.numpy()}
    ids = torch.from_numpy(np.load(Path(sys.argv[1]) / "ids.npy"))
    logits, _ = logits_of(sys.argv[1], ids, *DEMO_CACHE)
    losses = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")
    kept |= {"demo ids": ids[0].numpy(), "demo losses": losses.numpy()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **kept)


if __name__ == "__main__":
    main()
