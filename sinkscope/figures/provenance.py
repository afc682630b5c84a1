"""Where a drawing or a table came from, in words (for the reader) and as file metadata (for the archive)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from sinkscope.figures.style import visible


def source_line(attributes: Mapping[str, Any]) -> str:
    """One line for a human: model, revision, dtype, text, how much of it, BOS, what it was timed on, version,
    date."""
    get = attributes.get
    parts = [model_name(attributes)]
    if get("revision") and str(get("revision")) not in ("unknown", "None", "none"):
        parts.append(f"revision {str(get('revision'))[:12]}")
    parts += [str(get(key)) for key in ("dtype", "text") if get(key)]
    if get("tokens") is not None:
        sequences, tokens = max(int(get("sequences", 1)), 1), int(get("tokens", 0))
        equal = f"{sequences:,} × {tokens // sequences:,} tokens" if sequences > 1 else f"{tokens:,} tokens"
        parts.append(equal if tokens % sequences == 0 else f"{sequences:,} sequences, {tokens:,} tokens")
    if get("bos"):
        parts.append(f"BOS: {get('bos')}")
    if get("attention"):
        parts.append(f"attention: {get('attention')}")
    if get("threads"):
        parts.append(f"{get('device', 'cpu')}, {get('threads')} thread{'' if get('threads') == 1 else 's'}")
    if get("sinkscope"):
        parts.append(f"sinkscope {get('sinkscope')}")
    if get("date"):
        parts.append(str(get("date"))[:10])
    return visible(" · ".join(parts), spaces=False)


def model_name(attributes: Mapping[str, Any]) -> str:
    """What to call the model: its name, or the last part of its path."""
    name = str(attributes.get("model", "")) or "unknown model"
    return PurePath(name).name if name.startswith(("/", "~", ".")) or name[1:3] in (":\\", ":/") else name


def source_json(attributes: Mapping[str, Any]) -> str:
    """Every attribute of the record, as one line of ASCII JSON in a fixed order: the exact provenance.

    A model in a folder goes by its last name: what is published does not show the folders of a machine.
    """
    plain = {str(key): _plain(value) for key, value in attributes.items()}
    return json.dumps({**plain, "model": model_name(attributes)}, sort_keys=True)


def file_metadata(name: str, attributes: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """The metadata matplotlib writes into a file of this `kind`; None where the format holds none.

    Dates are the record's or left out, so the same record always gives the same bytes.
    """
    line, exact = source_line(attributes), source_json(attributes)
    title = name.replace("_", " ")
    version = f"sinkscope {attributes.get('sinkscope', '')}".strip()
    if kind == "pdf":
        return {"Title": title, "Subject": line, "Keywords": exact, "Creator": version, "CreationDate": None}
    if kind == "svg":
        return {"Title": title, "Description": exact, "Source": line, "Creator": version, "Date": None}
    if kind == "png":
        return {"Title": title, "Description": exact, "Source": line, "Software": version}
    if kind in ("ps", "eps"):
        return {"Creator": version}
    return None


def _plain(value: Any) -> Any:
    return (
        value.item()
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0
        else (value if isinstance(value, (str, int, float, bool)) or value is None else str(value))
    )
