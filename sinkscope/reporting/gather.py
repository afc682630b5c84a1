"""`report`: measure a model on a text, in the ways a report needs."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sinkscope.errors import SinkscopeError
from sinkscope.reporting.document import Report

if TYPE_CHECKING:
    import torch

FEWEST_TOKENS = 8  # a text must reach past the first four keys, with a few queries to average over
SHORT = (100, 64)  # Gu et al. 2024: sequences, tokens in each
SENTENCES = (256, 16)  # Xiao et al. 2023, Figure 2


def report(
    model: Any = None,
    tokenizer: Any = None,
    text: str | os.PathLike[str] | None = None,
    *,
    sequences: int = 8,
    length: int = 1024,
    streaming: bool = True,
    softmax: bool = True,
    progress: bool | None = None,
    **load_options: Any,
) -> Report:
    """Measure where the attention of a model goes, and return the Report of it.

    model: a loaded model, a name on the Hub, a directory, a .gguf file; None for the demo model.
    tokenizer: found beside the model where it is not given.
    text: a UTF-8 file, "hf:name", or None for the demo text.
    sequences, length: consecutive sequences of the text and tokens in each. A text or a model's position
        limit too small for them gives fewer or shorter ones, and the report says so (`Report.notes`).
    streaming: whether to measure also what it costs to forget: perplexity under four policies, the number of
        sinks, time and memory per token. A text too short or a model that cannot be streamed leaves the section
        out, and the report says why.
    softmax: whether to measure also what sum-to-one forces: eviction in closed form, the collapse decomposed,
        doses, interventions beside their controls, sink mass against predictability; left out in the same way.
    progress: False for no progress bars.
    load_options: passed to `load`, for example dtype or device.

    If the tokenizer itself puts a BOS token in front of a text, every sequence gets one; otherwise none does.
    Encoders (BERT) give a reduced report: there is no sink rate over lengths and no distance profile, both of
    which are defined by causal attention.

    Raises SinkscopeError for a model or text that cannot be read, a model without a tokenizer, a text of
    fewer than 8 tokens.
    """
    from sinkscope.core.measure import measure
    from sinkscope.core.probes import ALL, Maps, MeanLogits, SinkMass
    from sinkscope.data import load, read_tokens
    from sinkscope.data.sources import text_pieces
    from sinkscope.reporting.gather_softmax import softmax_records
    from sinkscope.reporting.gather_streaming import LENGTH, streaming_records

    for name, value in (("sequences", sequences), ("length", length)):
        if value < 1:
            raise SinkscopeError(f"{name} is {value}, but at least one is needed.")
    if text is not None and not os.fspath(text).startswith("hf:"):
        next(text_pieces(text))  # a wrong path is told before a large model is loaded
    loaded, found = load(model, **load_options)
    tokenizer = found if tokenizer is None else tokenizer
    if tokenizer is None:
        raise SinkscopeError("This model has no tokenizer beside it, and a report reads a text: pass tokenizer=...")
    front = front_token(tokenizer)
    limit = max(sequences * length, LENGTH if streaming or softmax else 1)
    tokens = read_tokens(tokenizer, text, limit=limit, bos=False).reshape(-1)
    rows, notes = text_rows(loaded, tokens, sequences, length, front)
    told: dict[str, Any] = {"text": text_name(text)}
    if notes:
        told["notes"] = "\n".join(notes)

    def measured(ids: torch.Tensor, probes: list[Any]) -> Any:
        return measure(loaded, ids, probes, tokenizer=tokenizer, progress=progress, **told)

    records = {"text": measured(rows, [probe for probe in ALL if not isinstance(probe, Maps)])}
    stream = rows[:, 1:].reshape(-1) if front is not None else rows.reshape(-1)
    if records["text"].attrs.get("causal", 1) and (short := cut(stream, *SHORT, front, rows.shape[1])) is not None:
        records["short"] = measured(short, [SinkMass()])
    if (sentences := cut(stream, *SENTENCES, front, rows.shape[1])) is not None:
        records["sentences"] = measured(sentences, [SinkMass(first=1), MeanLogits(tokens=SENTENCES[1])])
    causal, reasons = bool(records["text"].attrs.get("causal", 1)), list[str]()
    if streaming and causal:
        made, why = streaming_records(loaded, one_text(tokens, front), progress=progress, text=told["text"])
        records, reasons = records | made, reasons + why
    elif streaming:
        reasons.append("Streaming was not measured: an encoder reads a text as a whole, with no cache.")
    if softmax and causal:
        made, why = softmax_records(loaded, tokens, front, tokenizer, progress=progress, text=told["text"])
        records, reasons = records | made, reasons + why
    elif softmax:
        reasons.append("What softmax forces was not measured: an encoder reads a text as a whole, with no cache.")
    if notes or reasons:
        records["text"].attrs["notes"] = "\n".join([*notes, *reasons])
    return Report(records)


def text_name(text: str | os.PathLike[str] | None) -> str:
    """What to call a text in the record: its file name, without the folders of this machine."""
    if text is None:
        return "King James Bible (demo text)"
    name = os.fspath(text)
    return name if name.startswith("hf:") else PurePath(name).name


def front_token(tokenizer: Any) -> int | None:
    """The special token this tokenizer puts in front of a text by itself (BOS, [CLS]), or None."""
    ids = list(tokenizer("a")["input_ids"])
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None


def one_text(tokens: torch.Tensor, front: int | None) -> torch.Tensor:
    """The tokens [token] with the token in front that this tokenizer puts there."""
    from sinkscope.data import sequences as split

    return tokens if front is None else split(tokens, tokens.numel() + 1, 1, bos=front)[0]


def text_rows(
    model: Any, tokens: torch.Tensor, sequences: int, length: int, front: int | None
) -> tuple[torch.Tensor, list[str]]:
    """The sequences to measure, LongTensor [N, T], of the tokens [token] of a text, and what had to be less than was
    asked for.
    """
    from sinkscope.data import sequences as split

    notes = []
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < length:
        notes.append(f"Sequences have {limit:,} tokens, not {length:,}: the model has no more positions.")
        length = limit
    own = length - (front is not None)
    stream = tokens[: max(sequences * own, 1)]
    got = stream.numel()
    if got + (front is not None) < FEWEST_TOKENS:
        raise SinkscopeError(
            f"The text has {got} token{'' if got == 1 else 's'}, and a report needs at least "
            f"{FEWEST_TOKENS}: give a longer text."
            if length >= FEWEST_TOKENS
            else f"length is {length}, and a report needs at least {FEWEST_TOKENS} tokens in a sequence."
        )
    if length < FEWEST_TOKENS:
        raise SinkscopeError(f"length is {length}, and a report needs at least {FEWEST_TOKENS} tokens in a sequence.")
    if got < own:
        notes.append(f"The text has only {got:,} tokens: one sequence of them was measured, so there are no intervals.")
        own = got
    elif got < sequences * own:
        notes.append(f"The text has only {got:,} tokens: {got // own} of {sequences} sequences were measured.")
    count = min(sequences, got // own)
    return split(stream, own + (front is not None), count, bos=front), notes


def cut(stream: torch.Tensor, count: int, length: int, front: int | None, longest: int) -> torch.Tensor | None:
    """Up to `count` sequences of `length` tokens of the same text; None for fewer than two, or none shorter
    than the text.
    """
    from sinkscope.data import sequences as split

    count = min(count, stream.numel() // (length - (front is not None)))
    return split(stream, length, count, bos=front) if count >= 2 and length < longest else None
