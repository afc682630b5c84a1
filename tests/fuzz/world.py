"""What calls are made with when all is well: a tiny model, its tokenizer, records and tables, files in a folder."""

from __future__ import annotations

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import sinkscope
from sinkscope.hf.caches import with_cache
from sinkscope.probes import SinkDimensions
from tests.figures import records as drawn
from tests.support.tokenizers import byte_level
from tests.support.training_records import TEXT
from tests.support.zoo import with_uneven_attention

VOCABULARY = 512  # more than the tokenizer makes
_SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    intermediate_size=24, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
)  # fmt: skip
PROSE = TEXT * 4


@cache
def model() -> nn.Module:
    """The one model of all cases, which each has to leave as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_uneven_attention(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_SIZES))).eval()


@cache
def tokenizer() -> Any:
    return byte_level("<s> $A")


@cache
def said() -> list[int]:
    """The ids of a few words."""
    return list(tokenizer()("the cat sat on the mat")["input_ids"])


@cache
def saved_model() -> Path:
    """A folder as `save_pretrained` writes it."""
    folder = Path(tempfile.mkdtemp()) / "tiny"
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def grid() -> dict[str, Any]:
    """A grid of two cells."""
    axes = {"policies": ["dense", "sinks"], "sinks": 2, "cache_sizes": 8}
    return {"models": {"tiny": model()}, "texts": {"words": ids()}, **axes}


@cache
def grid_file() -> Path:
    """The same in YAML, with a text in a file."""
    path = saved_model().parent / "grid.yaml"
    (path.parent / "grid.txt").write_text(PROSE, encoding="utf-8")
    told = f"models: {saved_model()}\ntexts: {path.parent / 'grid.txt'}\ntokens: 40\n"
    path.write_text(told + "policies: [dense, sinks]\nsinks: 2\ncache_sizes: 8\n", encoding="utf-8")
    return path


@cache
def run_folder() -> Path:
    """What a sweep of that grid leaves."""
    sinkscope.sweep(grid(), saved_model().parent / "run", progress=False)
    return saved_model().parent / "run"


def ids(texts: int = 2, tokens: int = 40) -> Tensor:
    return torch.randint(3, 300, (texts, tokens), generator=torch.Generator().manual_seed(5))


def read(cache: Any) -> None:
    """One text into a cache, by whatever name this release gives that argument."""
    with torch.no_grad():
        model()(ids(1), **with_cache(model(), cache))


@cache
def _records() -> dict[str, Any]:
    from tests.support import experiments, loss_records, synthetic, training_records

    measured = sinkscope.measure(
        model(), ids(), (*sinkscope.ALL, sinkscope.EvictionEffect(), sinkscope.FirstCosine(), SinkDimensions()),
        tokenizer=tokenizer(), progress=False,
    )  # fmt: skip
    purposes = sinkscope.measure(model(), ids(), _of_purposes(), progress=False)
    gates = sinkscope.head_gates(purposes)
    run = sinkscope.run_ablation(model(), ids(), (0, 1), 8, progress=False)
    timed = sinkscope.run_timing(model(), ids(1, 64), 8, ("dense", "window"), repeats=1, progress=False)
    return {
        "measured": measured,
        "purposes": purposes,
        "gated": _gated(measured),
        "head split": sinkscope.head_split(model(), ids(1, 60), gates, (0, 0.5, 1), sinks=1, window=8, progress=False),
        "secondary": synthetic.secondary_record(),
        "tags": drawn.tagged(),
        "perturbed": drawn.perturbed(),
        "mixed": drawn.mixed(),
        "losses": sinkscope.perplexity(model(), ids(), [sinkscope.Dense()], progress=False),
        "collapsing": loss_records.collapsing(tokens=200),
        "ablation": run,
        "timing": timed,
        "collapse": experiments.collapse(),
        "dose": experiments.dose(),
        "interventions": experiments.interventions(),
        "forced": experiments.forced(),
        "predictability": experiments.predictability(),
        "recall": drawn.read_twice(),
        "answers": drawn.answered(),
        "spanned": drawn.spanned(),
        "emergence": training_records.emergence_record(),
        "language": drawn.language(),
        "view": drawn.view(),
        "image": _with_images(measured),
        "ablation table": drawn.ablation_table(),
        "timing table": drawn.decode_table(),
        "comparison table": drawn.comparison_table(),
        "many models": drawn.comparison_table(12).assign(differs=""),
        "emergence table": sinkscope.lab.emergence_table(training_records.emergence_record()),
    }


def _of_purposes() -> list[Any]:
    first = sinkscope.EvictionEffect((0,))
    return [*sinkscope.ALL, sinkscope.SinkPurpose(), sinkscope.Reach(1, (4, 16)), sinkscope.Compression(), first]


def _gated(measured: Any) -> Any:
    half = measured["log_sum_exp"] * 0 + 0.5
    return measured.assign(gate=half, gate_low=half)


def gates() -> Any:
    return sinkscope.head_gates(record("purposes"))


def _with_images(record: Any) -> Any:
    is_image = np.zeros(record["token"].shape, bool)
    is_image[4:8] = True
    places = {"is_image": is_image, "image": np.where(is_image, 0, -1)}
    cells = np.cumsum(is_image) - 1
    places |= {"image_row": np.where(is_image, cells // 2, -1), "image_column": np.where(is_image, cells % 2, -1)}
    every = {
        name: (("sequence", "token"), np.stack([each] * record.sizes["sequence"])) for name, each in places.items()
    }
    return record.assign_coords(every)


def names_of_records() -> list[str]:
    return list(_records())


def record(name: str) -> Any:
    """A record or a table that the caller may change."""
    return copy.deepcopy(_records()[name])
