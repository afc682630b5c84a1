"""`explore`: from a model and a text, or from a saved record, to the application."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any
from weakref import WeakValueDictionary

import IPython
import xarray as xr
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError, shown
from sinkscope.explorer.app import Explorer
from sinkscope.explorer.configuration import offered
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.results import SavedMaps
from sinkscope.explorer.text_model import TextModel
from sinkscope.explorer.writing import LONG, MOST, SHOWN, chat_ids, cut
from sinkscope.hf.loading import load_beside
from sinkscope.models.facts import find_streams
from sinkscope.models.requirements import check_decoder
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Policy
from sinkscope.probes import Maps
from sinkscope.record import open_record
from sinkscope.reporting.inputs import with_decoder_inputs
from sinkscope.scope.measure import measure, texts_of
from sinkscope.scope.streams import check_inputs
from sinkscope.spans import Spans
from sinkscope.texts import read_tokens
from sinkscope.tokens import TokenTexts

LENGTH = 512  # tokens shown of the demo text

_OPEN: WeakValueDictionary[Any, Any] = WeakValueDictionary()  # explorers by cell, number of its execution, and identity


def explore(
    model: Any = None,
    tokenizer: Any = None,
    text: str | os.PathLike[str] | Tensor | Mapping[str, Any] | None = None,
    *,
    length: int | None = None,
    state: str | None = None,
    spans: Spans | None = None,
    policies: Sequence[Policy] | Mapping[str, Policy] | None = None,
    normalisers: Sequence[Normaliser] | Mapping[str, Normaliser] | None = None,
    **load_options: Any,
) -> Explorer:
    """Take hold of a model's attention in a notebook: pick heads, evict tokens, turn the policy, and see what happens.

    The model itself is not touched: a copy that shares its weights is run, off the main thread.

    >>> app = sinkscope.explore(model, tokenizer, "the cat sat on the mat")
    >>> app.close()

    Args:
        model: a loaded decoder with a language head, a name on the Hub, a directory, a .gguf file; None for the demo
            model. Or a record with attention maps, or the path of one (.nc): it is looked at without a model.
        tokenizer: or a processor; found beside the model where it is not given.
        text: the text itself; a `Path` or "hf:name" to read it from; token ids [token]; None for the demo text. Or all
            that a model gets in one call, as its processor makes it, with images too. Of an encoder-decoder the maps of
            its decoder are shown, and policies are at rest. Or a chat: messages, dicts with "role" and "content", which
            the chat template puts together.
        length: tokens shown of the text, at most 4,096; 512 of the demo text and up to 2,048 of another when None.
        state: what to look at first: the `state` that an explorer of the same text and model had.
        spans: parts of the text of your own, which the list of spans then has.
        policies, normalisers: of your own, for the lists of the explorer: objects, or a dict with names for them.
        load_options: passed to `sinkscope.load`, for example dtype or device.

    Returns:
        The application; in a notebook it has been displayed. `close()` ends it, and so does running its cell again.

    Raises:
        SinkscopeError: a model that predicts no next token or cannot be read, an empty text or one of a single token,
            a text without a tokenizer, a length below 2 or above 4,096, a record without maps, a state of another text
            or model.
    """
    if isinstance(model, (str, os.PathLike)) and os.fspath(model).endswith(".nc"):
        model = open_record(model)
    is_record = isinstance(model, xr.Dataset)
    if is_record:
        app = _of_record(model, Given(state, spans))
    else:
        own = {"policy": offered("policy", policies), "normaliser": offered("normaliser", normalisers)}
        app = _of_model(model, tokenizer, text, length, Given(state, spans, own), load_options)
    replace_earlier(app)
    if _in_notebook():
        app.show()
    return app


@dataclass
class Given:
    """What an explorer is given beside its text: a state, spans, policies and normalisers of one's own."""

    state: str | None = None
    spans: Spans | None = None
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    chat: Spans | None = None


def _of_record(record: xr.Dataset, given: Given, note: str = "") -> Explorer:
    maps = SavedMaps(record)
    texts = [""] * maps.stop
    for name, form in (("token_id", "#{}"), ("token_text", "{}")):
        if name in record.coords:
            first = record[name].isel(sequence=0, missing_dims="ignore")
            texts = [form.format(each) for each in first.values[: maps.stop]]
    if "span" in record.coords and any(labels := record["span"].isel(sequence=0, missing_dims="ignore").values):
        given.chat = Spans.of_labels(labels[: maps.stop])
    return _opened(None, texts, given, saved=maps, note=note)


def _opened(model: TextModel | None, tokens: list[str], given: Given, **more: Any) -> Explorer:
    """The application, once it is sure that the state and the spans are of this text."""
    spans = {name: each for name, each in (("own", given.spans), ("chat", given.chat)) if each is not None}
    for each in spans.values():
        if not isinstance(each, Spans):
            raise SinkscopeError(f"spans={shown(each)} are none; give sinkscope.Spans of this text.")
        each.check(len(tokens))
    if given.state is not None:
        trial = Controller(model, tokens, more.get("saved"))
        trial.parts.given = spans
        trial.adopt(given.state)
    return Explorer(model, tokens, state=given.state, spans=spans, offered=given.own, **more)


def _of_model(
    model: Any, tokenizer: Any, text: Any, length: int | None, given: Given, load_options: dict[str, Any]
) -> Explorer:
    if length is not None and not (isinstance(length, Integral) and 2 <= length <= MOST):
        raise SinkscopeError(f"length is {length!r}; give 2 to {MOST:,} tokens, which is what a map may have.")
    if isinstance(tokenizer, Mapping) and text is None:  # as `measure` takes it
        tokenizer, text = None, tokenizer
    loaded, tokenizer = load_beside(model, tokenizer, **load_options)
    if not isinstance(loaded, nn.Module):
        raise SinkscopeError(f"a {type(loaded).__name__} is no loaded model; sinkscope.load() makes one.")
    if isinstance(text, Mapping):
        return _of_inputs(loaded, tokenizer, dict(text), given)
    check_decoder(loaded, predicts=True)  # before anything is asked of a tokenizer, which an encoder may lack
    if isinstance(text, (list, tuple)) and all(isinstance(each, Mapping) for each in text):
        text, given.chat = chat_ids(tokenizer, text)
    ids = _long_ids(tokenizer, text)
    seen = length or (LENGTH if text is None else SHOWN)
    note = f"The text is longer than is shown: these are its first {seen:,} tokens (length= changes that)."
    short = ids[:seen]
    reader = TextModel(loaded, short, tokenizer)  # which refuses ids that its tokenizer may not know
    tokens = named(tokenizer, short)
    if text is None:
        demo = f"sinkscope.read_tokens(tokenizer, limit={len(short)})"
        return _opened(reader, tokens, given, long_ids=ids, code_text=demo)
    if given.chat is not None:
        given.chat = cut(given.chat, len(short))
    return _opened(reader, tokens, given, long_ids=ids, note=note if len(ids) > seen else "")


def _of_inputs(model: nn.Module, tokenizer: Any, inputs: dict[str, Any], given: Given) -> Explorer:
    """Of what a processor made for one text: live where the model reads tokens one by one, else as saved maps."""
    if "encoder" in find_streams(model):
        inputs, _ = with_decoder_inputs(model, inputs)
        record = measure(model, inputs, [Maps(resolution=None)], tokenizer=tokenizer)
        try:
            check_decoder(model)
        except SinkscopeError as reason:
            return _of_record(record, given, f"These are maps of its decoder, and policies are at rest: {reason}")
    check_inputs(model, inputs)
    ids, mask = inputs.pop("input_ids", None), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        raise SinkscopeError("the explorer shows one text; give what the processor makes of one, input_ids [1, token].")
    if isinstance(mask, Tensor) and not bool(mask.all()):
        raise SinkscopeError("the explorer shows a text without padding; have the processor make one without.")
    inputs.pop("attention_mask", None)
    if ids.shape[1] > MOST:
        raise SinkscopeError(f"there are {ids.shape[1]:,} tokens, and a map may have {MOST:,}; give a smaller image.")
    reader = TextModel(model, ids[0], tokenizer, inputs)
    if not inputs:
        return _opened(reader, named(tokenizer, ids[0]), given, long_ids=ids[0])
    note = (
        f"The tab for streaming is left out: it reads token ids alone, and here they stand beside {', '.join(inputs)}."
    )
    return _opened(reader, named(tokenizer, ids[0]), given, note=note)


def named(tokenizer: Any, ids: Tensor) -> list[str]:
    """The text of each token."""
    return [f"#{token}" for token in ids.tolist()] if tokenizer is None else TokenTexts(tokenizer)(ids.tolist())


def _long_ids(tokenizer: Any, text: Any) -> Tensor:
    """Token ids [token], as many as the streaming tab plays."""
    if isinstance(text, Tensor):
        rows = texts_of(text)
        if len(rows) != 1:
            raise SinkscopeError(
                f"token ids of shape {tuple(text.shape)} are not one text; give whole numbers [token]."
            )
        return rows[0][:LONG]
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
