"""The cache of converted GGUF files: whole or not there, whatever happens on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Timeout
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from sinkscope import load
from sinkscope.errors import SinkscopeError
from sinkscope.hf import gguf as converted

CONVERT = """
import os, signal, sys, time
from pathlib import Path
import torch
from transformers import LlamaForCausalLM
from sinkscope.hf.loading import load

gguf, die = sys.argv[1], sys.argv[2] == "die"
write = LlamaForCausalLM.save_pretrained


def slow(self, directory):
    write(self, directory)
    if die:
        os.truncate(Path(directory) / "model.safetensors", 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(os.environ["MEETING"]) / str(os.getpid())).touch()
    time.sleep(3)  # in the middle of writing: long enough for the other to come this far, if it could


LlamaForCausalLM.save_pretrained = slow
model, tokenizer = load(gguf)
print(float(model.get_input_embeddings().weight.double().sum()), len(tokenizer))
"""


def start_conversion(gguf: Path, how: str = "live") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", CONVERT, str(gguf), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def entries(cache: Path) -> list[Path]:
    """What is in the cache beside its lock."""
    return [path for path in cache.iterdir() if path.name != converted.LOCK]


def embeddings(model) -> np.ndarray:
    return model.get_input_embeddings().weight.detach().numpy().copy()


@pytest.mark.slow
def test_the_second_load_does_not_convert_and_a_moved_file_finds_its_entry(tiny_gguf, cache, tmp_path, monkeypatch):
    first = embeddings(load(tiny_gguf[0])[0])
    monkeypatch.setattr(converted, "_convert", lambda *_: pytest.fail("converted again"))
    assert np.array_equal(embeddings(load(tiny_gguf[0])[0]), first)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / tiny_gguf[0].name
    moved.write_bytes(tiny_gguf[0].read_bytes())
    assert load(moved)[0].config.name_or_path == str(moved)


@pytest.mark.slow
def test_another_file_of_the_same_name_and_size_is_another_entry(tiny_gguf, cache, tmp_path):
    changed = bytearray(tiny_gguf[0].read_bytes())
    changed[-4:] = np.float32(7).tobytes()
    other = tmp_path / tiny_gguf[0].name
    other.write_bytes(changed)
    os.utime(other, (tiny_gguf[0].stat().st_mtime,) * 2)
    load(tiny_gguf[0])
    load(other)
    assert len(entries(cache)) == 2


def flip_one_byte(entry: Path) -> None:
    with (entry / "model.safetensors").open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def replace_by_a_file(entry: Path) -> None:
    for file in entry.iterdir():
        file.unlink()
    entry.rmdir()
    entry.write_text("not a directory")


DAMAGES = {
    "one bit of the weights": flip_one_byte,
    "weights cut short": lambda entry: os.truncate(entry / "model.safetensors", 5000),
    "no tokenizer": lambda entry: (entry / "tokenizer.json").unlink(),
    "no manifest": lambda entry: (entry / converted.MANIFEST).unlink(),
    "a manifest of something else": lambda entry: (entry / converted.MANIFEST).write_text("[1]"),
    "a file in its place": replace_by_a_file,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_entry_is_built_again(tiny_gguf, cache, damage):
    path, tensors = tiny_gguf
    load(path)
    (entry,) = entries(cache)
    damage(entry)
    model, tokenizer = load(path)
    assert np.array_equal(embeddings(model), tensors["token_embd.weight"])
    assert tokenizer is not None
    assert entries(cache) == [entry]


@pytest.mark.slow
def test_two_processes_at_once_both_get_the_model_and_one_converts(tiny_gguf, cache, tmp_path, monkeypatch):
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))
    processes = [start_conversion(tiny_gguf[0]) for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(list((tmp_path / "meeting").iterdir())) == 1
    expected = tiny_gguf[1]["token_embd.weight"].astype(np.float64).sum()
    for output in outputs:
        total, words = output.split()
        assert float(total) == pytest.approx(expected, abs=1e-9)
        assert int(words) >= 300
    assert len(entries(cache)) == 1


@pytest.mark.slow
def test_a_conversion_killed_in_the_middle_leaves_nothing_visible_and_is_cleared_away(tiny_gguf, cache):
    process = start_conversion(tiny_gguf[0], "die")
    process.communicate(timeout=200)
    assert process.returncode == -9
    (left,) = entries(cache)
    assert left.name.startswith(".") and (left / "model.safetensors").is_file()
    model, _ = load(tiny_gguf[0])
    assert np.array_equal(embeddings(model), tiny_gguf[1]["token_embd.weight"])
    assert [path.name[0] == "." for path in entries(cache)] == [False]


@pytest.mark.slow
def test_while_another_converts_this_one_waits_and_touches_nothing(tiny_gguf, cache):
    cache.mkdir()
    theirs = cache / f".another-file.new{converted.PARTIAL}"
    theirs.mkdir()
    with ThreadPoolExecutor() as threads:
        with FileLock(cache / converted.LOCK):
            waiting = threads.submit(load, tiny_gguf[0])
            with pytest.raises(Timeout):
                waiting.result(timeout=2)
            assert entries(cache) == [theirs]
        assert np.array_equal(embeddings(waiting.result()[0]), tiny_gguf[1]["token_embd.weight"])
    assert not theirs.exists()  # nobody converts any more, so it was left by a process that was killed


def test_an_interrupted_conversion_cleans_up_after_itself(tiny_gguf, cache, monkeypatch):
    def interrupted(gguf, dtype, directory):
        (directory / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(converted, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tiny_gguf[0])
    assert entries(cache) == []


def test_a_full_disk_or_a_cache_that_cannot_be_made_is_a_clear_error(tiny_gguf, tmp_path, cache, monkeypatch):
    def full(self, directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", full)
    with pytest.raises(SinkscopeError, match=r"No space left.*SINKSCOPE_CACHE"):
        load(tiny_gguf[0])
    assert entries(cache) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SinkscopeError, match="SINKSCOPE_CACHE"):
        load(tiny_gguf[0])
