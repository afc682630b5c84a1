"""`explore`: from a model and a text, or from a saved record, to the application."""

from __future__ import annotations

import os
import sys
from numbers import Integral
from typing import Any
from weakref import WeakValueDictionary

import IPython
import xarray as xr
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError
from sinkscope.explorer.app import Explorer
from sinkscope.explorer.results import SavedMaps
from sinkscope.explorer.text_model import TextModel
from sinkscope.hf.loading import load
from sinkscope.models.requirements import check_decoder
from sinkscope.record import open_record
from sinkscope.texts import read_tokens
from sinkscope.tokens import TokenTexts

LENGTH = 512  # tokens shown of the demo text
MOST = 2048  # tokens a map may have
LONG = 16384  # tokens the streaming tab plays

_OPEN: WeakValueDictionary[Any, Any] = WeakValueDictionary()  # explorers by cell, number of its execution, and identity


def explore(
    model: Any = None,
    tokenizer: Any = None,
    text: str | os.PathLike[str] | Tensor | None = None,
    *,
    length: int | None = None,
    **load_options: Any,
) -> Explorer:
    """Take hold of a model's attention in a notebook: pick heads, evict tokens, turn the policy, and see what happens.

    The model itself is not touched: a copy that shares its weights is run, off the main thread.

    Args:
        model: a loaded decoder with a language head, a name on the Hub, a directory, a .gguf file; None for the demo
            model. Or a record with attention maps, or the path of one (.nc): it is looked at without a model.
        tokenizer: found beside the model where it is not given.
        text: the text itself; a `Path` or "hf:name" to read it from; token ids [token]; None for the demo text.
        length: tokens shown of the text, at most 2,048; 512 of the demo text and up to 2,048 of another when None.
        load_options: passed to `sinkscope.load`, for example dtype or device.

    Returns:
        The application; in a notebook it has been displayed. `close()` ends it, and so does running its cell again.

    Raises:
        SinkscopeError: a model that predicts no next token or cannot be read, an empty text or one of a single token,
            a text without a tokenizer, a length below 2 or above 2,048, a record without maps.
    """
    if isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(".nc"):
        model = open_record(model)
    is_record = isinstance(model, xr.Dataset)
    app = _of_record(model) if is_record else _of_model(model, tokenizer, text, length, load_options)
    replace_earlier(app)
    if _in_notebook():
        app.show()
    return app


def _of_record(record: xr.Dataset) -> Explorer:
    maps = SavedMaps(record)
    texts = [""] * maps.stop
    for name, form in (("token_id", "#{}"), ("token_text", "{}")):
        if name in record.coords:
            first = record[name].isel(sequence=0, missing_dims="ignore")
            texts = [form.format(each) for each in first.values[: maps.stop]]
    return Explorer(None, texts, saved=maps)


def _of_model(model: Any, tokenizer: Any, text: Any, length: int | None, load_options: dict[str, Any]) -> Explorer:
    if length is not None and not (isinstance(length, Integral) and 2 <= length <= MOST):
        raise SinkscopeError(f"length is {length!r}; give 2 to {MOST:,} tokens, which is what a map may have.")
    loaded, found = load(model, **load_options)
    tokenizer = found if tokenizer is None else tokenizer
    if not isinstance(loaded, nn.Module):
        raise SinkscopeError(f"a {type(loaded).__name__} is no loaded model; sinkscope.load() makes one.")
    check_decoder(loaded, predicts=True)  # before anything is asked of a tokenizer, which an encoder may lack
    ids = _long_ids(tokenizer, text)
    shown = length or (LENGTH if text is None else MOST)
    note = f"The text is longer than is shown: these are its first {shown:,} tokens (length= changes that)."
    short = ids[:shown]
    reader = TextModel(loaded, short, tokenizer)  # which refuses ids that its tokenizer may not know
    ids_shown = short.tolist()
    tokens = [f"#{token}" for token in ids_shown] if tokenizer is None else TokenTexts(tokenizer)(ids_shown)
    if text is None:
        demo = f"sinkscope.read_tokens(tokenizer, limit={len(short)})"
        return Explorer(reader, tokens, long_ids=ids, code_text=demo)
    return Explorer(reader, tokens, long_ids=ids, note=note if len(ids) > shown else "")


def _long_ids(tokenizer: Any, text: Any) -> Tensor:
    """Token ids [token], as many as the streaming tab plays."""
    if isinstance(text, Tensor):
        ids = text.reshape(-1)
        if text.dim() > 2 or (text.dim() == 2 and len(text) != 1) or text.is_floating_point():
            raise SinkscopeError(
                f"token ids of shape {tuple(text.shape)} are not one text; give whole numbers [token]."
            )
        if not len(ids):
            raise SinkscopeError("the text has no tokens; give two at least.")
        return ids.long()[:LONG]
    if tokenizer is None:
        raise SinkscopeError(
            "this model has no tokenizer beside it; pass tokenizer=..., or token ids as text=torch.tensor([...])."
        )
    if not isinstance(text, str) or text.startswith("hf:"):
        return read_tokens(tokenizer, text, limit=LONG)[0]
    if not text.strip():
        raise SinkscopeError("the text is empty; give a text of two tokens at least, or None for the demo text.")
    return read_tokens(tokenizer, text=text, limit=LONG)[0]


def replace_earlier(app: Any) -> None:
    """Close the explorers that an earlier run of the same cell made; outside cells that have names, the last one."""
    cell, execution = _cell(), getattr(IPython.get_ipython(), "execution_count", None)
    for key, other in list(_OPEN.items()):
        if key[0] == cell and (execution is None or key[1] != execution):
            del _OPEN[key]
            other.close()
    _OPEN[cell, execution, id(app)] = app


def _cell() -> str | None:
    """The name of the cell that runs, as JupyterLab, Notebook and VS Code give it; None where there is none."""
    try:
        metadata = IPython.get_ipython().kernel.get_parent()["metadata"]
    except (AttributeError, KeyError, TypeError):
        return None
    cell = metadata.get("cellId") or metadata.get("cell_id")
    return cell if isinstance(cell, str) else None


def _in_notebook() -> bool:
    """Whether there is a kernel whose front end can show widgets; Colab is asked to let them in."""
    if getattr(IPython.get_ipython(), "kernel", None) is None:
        return False
    if "google.colab" in sys.modules:
        from google.colab import output  # type: ignore[import-not-found]

        output.enable_custom_widget_manager()
    return True
