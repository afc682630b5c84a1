"""The benchmark for a GPU: it runs through on a CPU with a tiny setting, and says where there is no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def gpu():
    path = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    specification = importlib.util.spec_from_file_location("benchmarks_gpu", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where a dataclass looks for its module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


def tiny(gpu):
    shape = gpu.Shape("tiny", width=32, layers=2, heads=4, kv_heads=2, inner=64, vocabulary=128)
    return gpu.Setting(
        device="cpu", dtype=torch.float32, shapes=(shape,), lengths=(16, 48), longest_maps=16, cache=16, blocks=3,
        explored=24, rounds=1, steps=2,
    )  # fmt: skip


@pytest.mark.slow
def test_all_parts_run_and_stand_in_one_table(gpu, capsys):
    assert gpu.main(tiny(gpu)) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    found = [tuple(line[1:4]) for line in lines[2:]]
    assert found == [
        ("forward", "16", "plain"), ("forward", "16", "free probes"), ("forward", "16", "all probes"),
        ("forward", "16", "output_attentions"),
        ("forward", "48", "plain"), ("forward", "48", "free probes"), ("forward", "48", "all probes"),
        ("stream", "48", "plain"), ("stream", "48", "sinks + window"),
        ("decode", "16", "DynamicCache"), ("decode", "16", "SinkCache"),
        ("explorer", "24", "plain"), ("explorer", "24", "window"), ("explorer", "24", "sinks"),
    ]  # fmt: skip
    assert all(float(line[4]) > 0 for line in lines[2:])
    assert [float(line[5]) for line in lines[2:] if line[3] in ("plain", "DynamicCache")] == [1.0] * 5


def test_what_does_not_fit_is_left_out_and_said(gpu, capsys):
    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = gpu.in_turns({"plain": lambda: None, "all probes": too_large}, 2, gpu.Clock("cpu"))
    assert list(found) == ["plain"]
    assert "all probes: does not fit the device" in capsys.readouterr().err


def test_a_bar_is_held_at_its_own_shape_and_length_only(gpu):
    def verdict(shape, tokens, ratio):
        return gpu.Row(shape, "forward", tokens, "free probes", 1.0, 1, ratio, 1.0).cells()[-1]

    assert verdict("8B", 8192, 1.04) == "at most 1.05: ok"
    assert verdict("8B", 8192, 1.06) == "at most 1.05: MISSED"
    assert verdict("8B", 2048, 1.06) == verdict("1B", 8192, 1.06) == ""


def test_without_a_gpu_it_says_so_with_exit_code_two(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(gpu.Setting()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == "there is no GPU here that torch can use: run this on a machine with one.\n"
