"""Arguments that no call takes, or hardly any: of every kind, and some for each parameter."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import sinkscope
from tests.fuzz import world
from tests.fuzz.ordinary import RECORDS, Make, ordinary
from tests.fuzz.spoilt import changed_records, changed_tables, no_records
from tests.fuzz.subjects import Subject
from tests.support import zoo


class Unshown:
    """Its repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Long:  # as the repr of a model
    def __repr__(self) -> str:
        return "line\n" * 10_000


def _plain(*values: Any) -> dict[str, Make]:
    return {told(value): (lambda _, value=value: value) for value in values}


def told(value: Any) -> str:
    try:
        said = " ".join(repr(value).split())
    except Exception:
        said = type(value).__name__
    return said if len(said) < 60 else f"{said[:50]}.. ({type(value).__name__})"


ANYTHING: dict[str, Make] = _plain(
    None, "", "nonsense", -1, 0, 1, 1.5, float("nan"), float("inf"), -float("inf"), 2**63, 10**30, 10**5000, True,
    b"\xff", [], {}, (), 3j, "\ud800", "a\nb\x1b[31m", "x" * 5000, [None], {"a": {"b": 1}}, {3: 4}, int, print,
    Path("/nowhere/at all"), Unshown(), Long(), range(10**12), frozenset({1}), ..., float("5e-324"), 1e308,
) | {
    "an object": lambda _: object(),
    "np.int64(2)": lambda _: np.int64(2),
    "np.float32(nan)": lambda _: np.float32("nan"),
    "np.arange(3)": lambda _: np.arange(3),
    "np.array('a')": lambda _: np.array("a"),
    "np.zeros(0)": lambda _: np.zeros(0),
    "a tensor": lambda _: torch.tensor([1.0]),
    "a tensor of nothing": lambda _: torch.zeros(0),
    "a meta tensor": lambda _: torch.zeros(3, device="meta"),
    "a generator": lambda _: (each for each in (1, 2)),
    "a deep list": lambda _: _deep(5000),
    "a list in itself": lambda _: _circular(),
    "a pandas table": lambda _: pd.DataFrame({"a": [1]}),
    "a date": lambda _: np.datetime64("2020-01-01"),
}  # fmt: skip


def _deep(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def _circular() -> list[Any]:
    made: list[Any] = [1]
    made.append(made)
    return made


# --- models, ids, tokenizers ----------------------------------------------------------------------------------------


def _not_finite(_: Path) -> nn.Module:
    made = zoo.build("llama")
    next(made.parameters()).data.fill_(float("nan"))
    return made


def _on_meta(_: Path) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **world._SIZES)).eval()


class Garbage(nn.Module):
    """Says that it has a configuration."""

    config = "none"

    def forward(self, input_ids: Any = None) -> Any:
        return None


MODELS: dict[str, Make] = {
    "a linear layer": lambda _: nn.Linear(2, 2),
    "an empty module": lambda _: nn.Module(),
    "the class of a model": lambda _: type(world.model()),
    "its configuration": lambda _: world.model().config,
    "in training": lambda _: zoo.build("llama").train(),
    "weights of NaN": _not_finite,
    "on meta": _on_meta,
    "an encoder": lambda _: zoo.build("bert"),
    "a vision model": lambda _: zoo.build("vit"),
    "its base": lambda _: zoo.build("llama").model,
    "a module with a false config": lambda _: Garbage().eval(),
    "a bare transformer": lambda _: nn.Transformer(8, 2, 1, 1, 8).eval(),
    "the name of a model": lambda _: "no/such-model",
    "its folder": lambda _: str(world.saved_model()),
    "float64": lambda _: zoo.build("llama", dtype=torch.float64),
    "float16": lambda _: zoo.build("llama", dtype=torch.float16),
    "alibi": lambda _: zoo.build("bloom"),
    "native windows": lambda _: zoo.build("gemma3"),
    "a model in a list": lambda _: [world.model()],
}
IDS: dict[str, Make] = {
    "floats": lambda _: world.ids().float(),
    "NaN": lambda _: torch.full((1, 40), float("nan")),
    "no dimension": lambda _: torch.tensor(3),
    "three dimensions": lambda _: world.ids()[None],
    "one dimension": lambda _: world.ids()[0],
    "negative": lambda _: -world.ids(),
    "beyond the vocabulary": lambda _: world.ids() + world.VOCABULARY,
    "beyond int64": lambda _: [[10**30] * 40],
    "booleans": lambda _: world.ids() > 50,
    "int32": lambda _: world.ids().int(),
    "uint8": lambda _: world.ids().clamp(max=255).to(torch.uint8),
    "no texts": lambda _: world.ids()[:0],
    "no tokens": lambda _: world.ids()[:, :0],
    "one token": lambda _: world.ids(1, 1),
    "two tokens": lambda _: world.ids(1, 2),
    "ragged lists": lambda _: [[5, 6, 7], [8, 9]],
    "a list of texts of other lengths": lambda _: [world.ids(1, 12)[0], world.ids(1, 40)[0]],
    "one text empty": lambda _: [world.ids(1)[0], world.ids(1)[0][:0]],
    "lists": lambda _: world.ids().tolist(),
    "numpy": lambda _: world.ids().numpy(),
    "numpy floats": lambda _: world.ids().numpy() * 1.0,
    "strings": lambda _: ["the cat sat", "on the mat"],
    "on meta": lambda _: world.ids().to("meta"),
    "sparse": lambda _: world.ids().to_sparse(),
    "complex": lambda _: world.ids().to(torch.complex64),
    "with gradients": lambda _: world.ids().float().requires_grad_(),
    "not contiguous": lambda _: world.ids(40, 2).T,
    "longer than the model": lambda _: world.ids(1, 600),
    "by name": lambda _: {"input_ids": world.ids()},
    "by a wrong name": lambda _: {"input": world.ids()},
    "by name, not tensors": lambda _: {"input_ids": [[1, 2]]},
    "by name, nothing": lambda _: {"input_ids": None},
    "by name, wrong mask": lambda _: {"input_ids": world.ids(), "attention_mask": torch.ones(3, 3)},
    "an iterator": lambda _: iter(world.ids()),
    "a list with None": lambda _: [world.ids()[0], None],
}


class Encodes:
    """A tokenizer that makes anything."""

    bos_token_id = "one"

    def __init__(self, made: Any) -> None:
        self.made = made

    def __call__(self, text: str, **options: Any) -> Any:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made

    def decode(self, ids: Any, **options: Any) -> Any:
        return self(ids)


TOKENIZERS: dict[str, Make] = {
    "a function of a text": lambda _: lambda text: [ord(each) % 300 for each in text],
    "the class": lambda _: type(world.tokenizer()),
    "a model": lambda _: world.model(),
    **{
        f"one that makes {told(made)}": (lambda _, made=made: Encodes(made))
        for made in (None, "ids", [], ["a"], [1.5], [10**30], [-1], {"input_ids": None}, {}, 3, KeyError("x"), [[1, 2]])
    },
}

# --- files ----------------------------------------------------------------------------------------------------------


def _bytes(data: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "given.bin").write_bytes(data)
        return folder / "given.bin"

    return make


def _loop(folder: Path) -> Path:
    if not (folder / "loop").is_symlink():
        (folder / "loop").symlink_to("loop")
    return folder / "loop"


def _below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("a file")
    return folder / "file" / "below"


def _fifo(folder: Path) -> Path:
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _folder(folder: Path) -> Path:
    (folder / "held").mkdir(exist_ok=True)
    (folder / "held" / "thesis.tex").write_text("years of work")
    return folder / "held"


SENTENCE = "In the beginning\r\n" * 30
PATHS: dict[str, Make] = {
    "a folder": _folder,
    "a symlink to itself": _loop,
    "below a file": _below_a_file,
    "a pipe": _fifo,
    "/dev/null": lambda _: "/dev/null",
    "/dev/full": lambda _: "/dev/full",
    "/proc/self/mem": lambda _: "/proc/self/mem",
    "a name of 5,000 characters": lambda folder: folder / ("n" * 5000),
    "a path of 5,000 folders": lambda folder: folder / "/".join("n" * 5000),
    "a NUL in the name": lambda folder: f"{folder}/a\0b",
    "a line break in the name": lambda folder: folder / "a\nb",
    "a surrogate in the name": lambda folder: f"{folder}/\ud800",
    "Unicode in the name": lambda folder: folder / "ünï 漢字🙂",
    "~nobody/here": lambda _: "~nobody/here",
    "bytes": lambda folder: os.fsencode(folder) + b"/x",
    "a descriptor": lambda _: 1,
    "an empty file": _bytes(b""),
    "binary": _bytes(bytes(range(256)) * 8),
    "NULs": _bytes(b"\0" * 999),
    "HDF5, cut off": _bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40),
    "GGUF, cut off": _bytes(b"GGUF\3\0\0\0"),
    "a huge line": _bytes(b"word " * 200_000),
    "latin-1": _bytes("Räuber und Gräber ".encode("latin-1") * 20),
    "surrogates in UTF-8": _bytes(b"a \xed\xa0\x80 b " * 20),
    **{
        code: _bytes(SENTENCE.encode(code))
        for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-7", "cp037")
    },
}

# --- other things ---------------------------------------------------------------------------------------------------

PLACES: dict[str, Make] = _plain(
    [-1], [99], [0, 0], ["0"], [0.0], "01", [True], range(10**9), [[0]], (0, 1), [10**30], {0: 1}, [float("nan")], (0,)
) | {"numpy places": lambda _: np.array([0]), "a tensor of places": lambda _: torch.tensor([0])}
POLICIES: dict[str, Make] = {
    "the class of a policy": lambda _: sinkscope.Dense,
    "a normaliser": lambda _: sinkscope.Softmax1(),
    "a policy twice": lambda _: [sinkscope.Dense(), sinkscope.Dense()],
    "a policy in a policy": lambda _: [[sinkscope.Dense()]],
    "a place beyond the text": lambda _: sinkscope.Evict([10**6]),
    "a huge window": lambda _: sinkscope.Window(10**12),
    "a scored policy": lambda _: sinkscope.TOVA(8),
    "of a head that is not there": lambda _: sinkscope.Window(8, heads=[99]),
    "of a layer that is not there": lambda _: sinkscope.Window(8, layers=[99]),
    "re-computation": lambda _: sinkscope.Recompute(8),
    "a policy of no kind": lambda _: sinkscope.Policy(),
}
NORMALISERS: dict[str, Make] = {
    "the class of a normaliser": lambda _: sinkscope.Softmax1,
    "a policy": lambda _: sinkscope.Dense(),
    "sparsemax": lambda _: sinkscope.Sparsemax(),
    "of a head that is not there": lambda _: sinkscope.Softmax1(heads=[99]),
    "a logit for each of three heads": lambda _: sinkscope.LearnedSink(torch.zeros(3)),
}
PROBES: dict[str, Make] = {
    "classes of probes": lambda _: [sinkscope.SinkMass],
    "a probe twice": lambda _: [sinkscope.SinkMass(), sinkscope.SinkMass()],
    "two of a kind": lambda _: [sinkscope.SinkMass(1), sinkscope.SinkMass(2)],
    "one probe": lambda _: sinkscope.SinkMass(),
    "a probe of no kind": lambda _: [sinkscope.probes.Probe()],
    "more than the text has": lambda _: [sinkscope.SinkMass(100)],
    "a policy among them": lambda _: [sinkscope.SinkMass(1), sinkscope.Dense()],
    "a layer that is not there": lambda _: [sinkscope.Maps(layers=[99])],
}
INTERVENTIONS: dict[str, Make] = {
    "classes": lambda _: [sinkscope.Shift],
    "the same twice": lambda _: [sinkscope.Repeat(), sinkscope.Repeat()],
    "too far": lambda _: [sinkscope.Shift(10**6)],
    "no token": lambda _: [sinkscope.Repeat(10**9)],
    "a layer that is not there": lambda _: [sinkscope.SetMassive([99])],
    "line breaks": lambda _: [sinkscope.ReplaceTokens()],
    "many keys": lambda _: [sinkscope.EvictKeys([10**6])],
    "random": lambda _: [sinkscope.EvictKeys("random", 10**6)],
}
TENSORS: dict[str, Make] = {
    "another width": lambda _: torch.randn(1, 2, 8, 5),
    "another length": lambda _: torch.randn(1, 2, 5, 4),
    "three heads": lambda _: torch.randn(1, 3, 8, 4),
    "no heads": lambda _: torch.randn(1, 0, 8, 4),
    "no tokens": lambda _: torch.randn(1, 2, 0, 4),
    "a matrix": lambda _: torch.randn(8, 4),
    "whole numbers": lambda _: torch.ones(1, 2, 8, 4, dtype=torch.long),
    "complex numbers": lambda _: torch.ones(1, 2, 8, 4, dtype=torch.complex64),
    "NaN": lambda _: torch.full((1, 2, 8, 4), float("nan")),
    "infinite": lambda _: torch.full((1, 2, 8, 4), float("inf")),
    "half": lambda _: torch.randn(1, 2, 8, 4).half(),
    "numpy": lambda _: np.ones((1, 2, 8, 4)),
    "on meta": lambda _: torch.ones(1, 2, 8, 4, device="meta"),
}
MAPS: dict[str, Make] = {
    "logits": lambda _: np.random.default_rng(0).normal(size=(2, 2, 8, 8)),
    "not square": lambda _: np.full((1, 1, 3, 4), 0.2),
    "texts": lambda _: np.full((1, 1, 3, 3), "a"),
    "objects": lambda _: np.full((1, 1, 3, 3), None),
    "ragged": lambda _: [np.eye(3)[None, None], np.eye(4)[None, None]],
    "ragged lists": lambda _: [[[[1.0], [0.5, 0.5]]]],
    "with gradients": lambda _: torch.eye(3)[None, None].requires_grad_(),
    "half": lambda _: torch.eye(3)[None, None].bfloat16(),
    "dates": lambda _: np.full((1, 1, 3, 3), np.datetime64("2020")),
}
FIELDS: dict[str, Make] = {
    "a function that raises": lambda _: _raises,
    "a function of nothing": lambda _: lambda: None,
    "a function that gives nothing": lambda _: lambda *given, **options: None,
    "a list with None": lambda _: [None],
    "columns of texts": lambda _: ["a", "b"],
    "an odd length": lambda _: [1.0, 2.0, 3.0],
    "NaN": lambda _: [float("nan"), 1.0],
}


def _raises(*given: Any, **options: Any) -> Any:
    raise KeyError("from a function of the user's")


BY_NAME: dict[tuple[str, ...], dict[str, Make]] = {
    ("model",): MODELS,
    ("ids", "text", "tokens", "bos"): IDS,
    ("tokenizer",): TOKENIZERS,
    ("path", "folder", "directory", "source", "checkpoint", "fname", "text", "saved", "model", "table"): PATHS,
    ("layers", "heads", "keys", "which", "sites", "lengths", "distances", "seeds", "sinks", "top_k"): PLACES,
    ("policy", "policies", "default", "full", "streaming", "cache"): POLICIES,
    ("normaliser", "arms"): NORMALISERS,
    ("probes",): PROBES,
    ("interventions",): INTERVENTIONS,
    ("query", "key", "value", "mask", "parts"): TENSORS,
    ("array", "values"): MAPS,
    ("items", "sections", "describe", "make", "figure", "run", "numbers", "sentence", "x", "y", "low", "high"): FIELDS,
    ("values", "array", "records", "model", "drawing"): no_records(),
}
ENDLESS = ("steps", "repeats", "max_new_tokens", "timeout", "workers", "n_jobs", "every")
"""What may be asked for in any number, and takes as long as it takes: huge numbers are left out."""


def hostile(subject: Subject, parameter: inspect.Parameter) -> dict[str, Make]:
    """Values for a parameter, those of its kind first."""
    own: dict[str, Make] = {}
    for names, values in BY_NAME.items():
        if parameter.name in names:
            own |= values
    if parameter.name in RECORDS or (parameter.name == "records" and subject.name == "Report"):
        own |= no_records()
        make = ordinary(subject, parameter)
        if make is not None and isinstance(made := make(Path()), xr.Dataset):
            own |= {f"a record with {said}": make for said, make in changed_records(made)}
        elif make is not None and isinstance(made, pd.DataFrame):
            own |= {f"a table with {said}": make for said, make in changed_tables(made)}
    return own


def drawn(parameter: inspect.Parameter) -> st.SearchStrategy[Any]:
    """Values that hypothesis makes."""
    most = 1 if parameter.name in ENDLESS else None
    return st.one_of(
        st.integers(max_value=most), st.floats(), st.text(max_size=20), st.booleans(),
        st.lists(st.integers(-5, 50), max_size=4), st.lists(st.floats(), max_size=3), st.binary(max_size=8),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )  # fmt: skip


def anything(parameter: inspect.Parameter) -> dict[str, Make]:
    """Values that go with no parameter in particular."""
    return {
        said: make
        for said, make in ANYTHING.items()
        if parameter.name not in ENDLESS or not re.match(r"\d{9}|an? int|<int|int", said)
    }
