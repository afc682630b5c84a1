"""What is written to disk, each thing in a folder of its own: how it is made, and what is read back from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope.experiments.ablation import run_ablation
from sinkscope.hf.caches import with_cache
from sinkscope.record import open_record, save_record
from sinkscope.reporting.document import Report
from sinkscope.streaming import checkpoint
from tests.support import naive_record

IDS = torch.arange(40)[None] * 7 % 90 + 3


@cache
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


@dataclass(frozen=True)
class Scenario:
    """Something that is kept on disk.

    Attributes:
        write: makes version 1 or 2 in a folder; with an earlier version there, or what a killed run left of this one.
        read: the numbers of what is there, or SinkscopeError.
        resumes: whether both versions are the same numbers, which a run goes on with.
    """

    name: str
    write: Callable[[Path, int], Any]
    read: Callable[[Path], list[np.ndarray]]
    resumes: bool = False


@cache
def record_of(version: int):
    record = naive_record.norms_only()
    return record.assign({name: record[name] + version for name in record.data_vars}).assign_attrs(version=version)


def write_record(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    save_record(record_of(version), folder / "record.nc")


def numbers(record) -> list[np.ndarray]:
    return [record[name].values for name in sorted(record.data_vars)] + [np.array(str(sorted(record.attrs.items())))]


def write_report(folder: Path, version: int) -> None:
    Report(record_of(version)).save(folder / "report", progress=False)


def read_report(folder: Path) -> list[np.ndarray]:
    report = Report.open(folder / "report")
    return [each for record in report.records.values() for each in numbers(record)]


def write_cache(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    with sinkscope.SinkCache(model(), sinks=2, window=6) as held, torch.no_grad():
        model()(IDS[:, : 20 + version], **with_cache(model(), held))
        held.save(folder / "cache.safetensors")


def read_cache(folder: Path) -> list[np.ndarray]:
    with sinkscope.SinkCache.load(folder / "cache.safetensors", model()) as held, torch.no_grad():
        return [model()(IDS[:, 30:34], **with_cache(model(), held)).logits.numpy()]


def losses(folder: Path) -> list[np.ndarray]:
    policies = [sinkscope.SinkWindow(2, 6), sinkscope.Dense()]
    return [
        sinkscope.perplexity(model(), IDS, policies, block=4, checkpoint=folder / "runs", progress=False).nll.values
    ]


def write_losses(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    usual, checkpoint.SECONDS = checkpoint.SECONDS, -1.0  # after every block
    try:
        losses(folder)
    finally:
        checkpoint.SECONDS = usual


def cells(folder: Path) -> list[np.ndarray]:
    return [run_ablation(model(), IDS, [0, 2], 8, folder=folder / "cells", progress=False).nll.values]


def measured(folder: Path) -> list[np.ndarray]:
    record = sinkscope.measure(model(), IDS.reshape(4, 10), batch_tokens=20, checkpoint=folder / "batches")
    return [record[name].values for name in sorted(record.data_vars)]


SCENARIOS = [
    Scenario("record", write_record, lambda folder: numbers(open_record(folder / "record.nc"))),
    Scenario("cache", write_cache, read_cache),
    Scenario("report", write_report, read_report),
    Scenario("losses", write_losses, losses, resumes=True),
    Scenario("measurements", lambda folder, version: measured(folder), measured, resumes=True),
    Scenario("ablation", lambda folder, version: cells(folder), cells, resumes=True),
]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether two readings are equal to the bit, NaNs in the same places."""
    return len(first) == len(second) and all(
        np.array_equal(one, other, equal_nan=one.dtype.kind == "f") for one, other in zip(first, second, strict=True)
    )


def names(folder: Path) -> list[str]:
    """All that lies in a folder and below it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
