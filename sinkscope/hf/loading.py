"""`load`: a model and its tokenizer from wherever they are."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from sinkscope.arguments import checks_types
from sinkscope.errors import SinkscopeError, first_line, warn
from sinkscope.hf.gguf import converted, demo_model_file
from sinkscope.hf.models import auto_class, quiet_transformers, setting

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab.*", "vocab*.json", "merges.txt", "tekken.json")


@checks_types
def load(
    source: Any = None,
    *,
    dtype: Any = None,
    device: Any = None,
    device_map: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer (None where there is none, as for vision models).

    A decoder with a language head is loaded with it, and so are models that read images beside text and
    encoder-decoders; an encoder or a vision model is loaded without a head. A .gguf file is
    converted once, to safetensors in the user's cache folder (environment variable SINKSCOPE_CACHE to choose another):
    the next load takes seconds.

    >>> model, tokenizer = sinkscope.load("path/to/model")
    >>> model.training
    False

    Args:
        source: None for the demo model (SmolLM2-135M-Instruct); a .gguf file; a directory written by `save_pretrained`;
            a name on the Hugging Face Hub; or a model that is already loaded, which is given back as it is.
        dtype: torch.dtype or its name. None means float32 for a .gguf file, else the checkpoint's own dtype.
        device: where to put the whole model; give it or `device_map`.
        device_map: how to spread it (accelerate).
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run Python code that comes with the model. Never without being asked.
        kwargs: passed on to `from_pretrained`, for example attn_implementation.

    Raises:
        SinkscopeError: a source that is not there or cannot be read.
    """
    asked = {"dtype": dtype, "device": device, "device_map": device_map, "revision": revision}
    given = [name for name, value in asked.items() if value is not None] + list(kwargs)
    if not (source is None or isinstance(source, (str, os.PathLike))):
        return _already_loaded(source, given)
    if device is not None and device_map is not None:
        raise SinkscopeError("Both device and device_map were given: give one of them.")
    if "gguf_file" in kwargs:
        raise SinkscopeError("gguf_file is not needed: give the path of the .gguf file itself as the model.")

    name, path = _find(demo_model_file() if source is None else source)
    place, options = name, {"device_map": device_map, **kwargs}
    if path is not None and path.is_file():
        options["dtype"] = _dtype("float32" if dtype in (None, "auto") else dtype)
        place, trust_remote_code = str(converted(path, options["dtype"])), False
    else:
        options |= {"dtype": "auto" if dtype is None else _dtype(dtype), "revision": revision}
    with quiet_transformers():
        model = _model(place, name, options, trust_remote_code)
        tokenizer = _tokenizer(place, model.config, revision if path is None else None, trust_remote_code)
    for thing in (model, model.config, tokenizer):
        if thing is not None:
            thing.name_or_path = name  # of a GGUF file: itself, not its place in the cache
    if device is not None:
        try:
            model = model.to(device)
        except Exception as error:
            raise SinkscopeError(f"The model cannot be put on device {device!r}: {first_line(error)}.") from error
    return model.eval(), tokenizer


def _find(source: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """The source as transformers wants it, and its path where it is on this machine."""
    text = os.fspath(source)
    is_directory = is_file = False
    with suppress(OSError, ValueError, RuntimeError):
        path = Path(text).expanduser()
        is_directory, is_file = bool(text) and path.is_dir(), path.is_file()
    if is_directory and not (path / "config.json").is_file():
        files = [f"the file itself, such as {str(file)!r}" for file in sorted(path.glob("*.gguf"))]
        advice = files[0] if files else "one that save_pretrained wrote"
        raise SinkscopeError(f"The directory {text!r} is not a model, it has no config.json: give {advice}.")
    if is_file:
        try:
            with path.open("rb") as file:
                is_gguf = path.suffix.lower() == ".gguf" or file.read(4) == b"GGUF"
        except OSError as error:
            raise SinkscopeError(f"The file {text!r} cannot be read: {first_line(error)}.") from error
        if not is_gguf:
            raise SinkscopeError(
                f"The file {text!r} is not a model: give a directory, a .gguf file or a name on the Hub."
            )
    if is_directory or is_file:
        return str(path), path
    looks_like_path = not isinstance(source, str) or text.lower().endswith(".gguf") or text[:1] in "./~\\"
    if looks_like_path or not HUB_ID.fullmatch(text):
        raise SinkscopeError(
            f"There is no model at {text!r}: give a directory, a .gguf file or a name on the Hugging Face Hub."
        )
    return text, None


def _dtype(dtype: Any) -> Any:
    """A floating torch.dtype from one or from its name; "auto" as it is."""
    if dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SinkscopeError(f"dtype is {dtype!r}, but it must be a floating type such as 'float32' or 'bfloat16'.")
    return found


def _model(place: str, name: str, options: dict[str, Any], trust_remote_code: bool) -> Any:
    revision = {"revision": options["revision"]} if options.get("revision") else {}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code, **revision)
        model, report = auto_class(config).from_pretrained(
            place, trust_remote_code=trust_remote_code, output_loading_info=True, **options
        )
    except Exception as error:
        raise SinkscopeError(_reason(name, error)) from error
    if missing := sorted(report["missing_keys"]):
        warn(f"{name} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]} first): they are random.")
    return model


def _reason(name: str, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return f"{name!r} brings its own Python code: read it, and pass trust_remote_code=True if you trust it."
    if os.path.exists(name):
        return f"The model in {name!r} cannot be loaded: {first_line(error)}."
    return (
        f"{name!r} cannot be loaded from the Hugging Face Hub ({first_line(error)}): check the name and the network, "
        "or log in with `hf auth login` if access to it is restricted."
    )


def _tokenizer(place: str, config: Any, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer beside a model; None for a model without a vocabulary or where there is none."""
    if getattr(config.get_text_config(), "vocab_size", None) is None:
        return None
    directory = Path(place)
    if directory.is_dir() and not any(found for kind in TOKENIZER_FILES for found in directory.glob(kind)):
        return None
    chosen = {"revision": revision} if revision else {}
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code, **chosen)
    except Exception as error:
        warn(f"The tokenizer of {place} cannot be loaded ({first_line(error)}).")
        return None


def load_beside(source: Any, tokenizer: Any, **options: Any) -> tuple[Any, Any]:
    """As `load`, with a tokenizer, or a processor that holds one, in the place of the model's own, if one is given.

    Beside a model that is loaded already none is looked for then, which takes half a second.
    """
    if isinstance(source, torch.nn.Module) and tokenizer is not None and not options:
        return source, tokenizer_of(tokenizer)
    model, found = load(source, **options)
    return model, tokenizer_of(found if tokenizer is None else tokenizer)


def tokenizer_of(given: Any) -> Any:
    """The tokenizer of a processor; a tokenizer as it is."""
    return given.tokenizer if isinstance(given, ProcessorMixin) and hasattr(given, "tokenizer") else given


def has_template_method(tokenizer: Any) -> bool:
    """Whether a tokenizer puts turns together by a method of its own, as those of mistral-common do."""
    method = getattr(type(tokenizer), "apply_chat_template", None)
    return method is not None and method is not PreTrainedTokenizerBase.apply_chat_template


def _already_loaded(model: Any, given: list[str]) -> tuple[Any, Any]:
    if not isinstance(model, torch.nn.Module):
        raise SinkscopeError(
            f"A model is a name, a path or a torch module, not a {type(model).__name__}: see sinkscope.load."
        )
    if given:
        raise SinkscopeError(f"The model is loaded already, so {given[0]} has no effect: change the model itself.")
    try:
        place, path = _find(str(setting(model, "name_or_path") or ""))
        if path is not None and path.is_file():
            place = str(converted(path, torch.float32))
    except SinkscopeError:  # there is no name, or the place it came from is gone
        return model, None
    with quiet_transformers():
        return model, _tokenizer(place, model.config, None, False)
