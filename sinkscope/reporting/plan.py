"""What a report is to measure, said before anything is: in Python, or in a YAML file with the same words.

    model: {source: demo, weights: 3f1c...}
    texts: [{source: demo, sha256: 9a41...}, demo:ferry]
    segments: 8
    length: 1024
    epsilon: 0.3
    margin: 0.02

What is left out is as in a report without a plan. A plan is known by the SHA-256 of all that it says, defaults and all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sinkscope.analysis.importance import EPSILON
from sinkscope.analysis.interventions import MARGIN
from sinkscope.arguments import (
    check_fields,
    check_names,
    checks_types,
    finite_number,
    one_of,
    open_unit,
    several,
    whole_number,
)
from sinkscope.errors import SinkscopeError, shown, warn
from sinkscope.experiments.grid import DEMO, LOADING, WAYS
from sinkscope.files import write_text
from sinkscope.sampling import COUNT, STARTS
from sinkscope.settings_file import read_settings
from sinkscope.texts import text_name

LENGTH = 1024  # tokens of a sequence
CACHE, SMALLEST_CACHE = 128, 16  # tokens; L in everything but the timing
SINKS = 4
DOSES = (-float("inf"), -4.0, -2.0, 0.0, 2.0)
ARMS = ("sinks", "attended", "recent", "delimiters", "line breaks", "shift")
ALWAYS = ("dense", "window", "sinks")  # what a report compares
SHA256 = re.compile("[0-9a-f]{64}")
SAYS = "# A plan of sinkscope report; sha256 of what it says: "
SAVED = re.compile(f"{SAYS}({SHA256.pattern})")


@dataclass(frozen=True)
class Plan:
    """What determines the numbers of a report.

    >>> plan = sinkscope.Plan(texts="book.txt", epsilon=0.2)
    >>> len(plan.sha256)
    64

    Args:
        model: what `sinkscope.load` takes, "demo" for the demo model, or a mapping with `source` and dtype, device,
            device_map, revision, or `weights`, their hash; whatever the call gives when None.
        texts: a file, "hf:name", "demo", "demo:ferry", or a mapping with `source` and `sha256`; or several.
        sequences: how many of each text, one behind the other from its start.
        segments: how many of each text, from all over it; 8 where neither is said.
        starts: of segments, "spaced" or "random".
        length: tokens in each sequence, where attention is measured. Losses under policies are of eight parts of 384
            tokens, those of interventions of eight of at most 256, whatever these four say.
        seed: of all that is drawn at random.
        streaming, softmax: whether these sections are measured.
        epsilon: the importance from which on a head has a sink.
        margin: how far a ratio of perplexities may be from one, interval and all, to be called equal to it.
        cache, sinks: tokens that every policy but dense keeps, and how many of them are sinks.
        policies: dense, window and sinks, and others of `sinkscope sweep`.
        doses: biases on the logit of the first token.
        interventions: sinks, attended, recent, delimiters, 'line breaks', shift.

    Raises:
        SinkscopeError: a value of the wrong kind, an unknown word, sequences and segments both.
    """

    model: Any = None
    texts: Any = DEMO
    sequences: int | None = None
    segments: int | None = None
    starts: str = STARTS[0]
    length: int = LENGTH
    seed: int = 0
    streaming: bool = True
    softmax: bool = True
    epsilon: float = EPSILON
    margin: float = MARGIN
    cache: int = CACHE
    sinks: int = SINKS
    policies: Any = WAYS[:4]
    doses: Any = DOSES
    interventions: Any = ARMS

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sequences is not None and self.segments is not None:
            raise SinkscopeError(
                f"sequences={self.sequences} and segments={self.segments} are two ways to read a text: give one."
            )
        if self.sequences is not None and self.starts != STARTS[0]:
            raise SinkscopeError(f"starts={self.starts!r} are of segments, and sequences follow each other: give one.")
        parts = COUNT if self.segments is None and self.sequences is None else self.segments
        found = {
            "model": _model(self.model),
            "texts": text_entries(self.texts),
            "segments": None if parts is None else whole_number(parts, "segments", 1),
            "sequences": None if self.sequences is None else whole_number(self.sequences, "sequences", 1),
            "starts": one_of(self.starts, "starts", STARTS),
            "length": whole_number(self.length, "length", 1),
            "seed": whole_number(self.seed, "seed", 0, 2**63 - 1),
            "streaming": bool(self.streaming),
            "softmax": bool(self.softmax),
            "epsilon": open_unit(self.epsilon, "epsilon"),
            "margin": finite_number(self.margin, "margin", 0.0),
            "cache": whole_number(self.cache, "cache", SMALLEST_CACHE),
            "sinks": whole_number(self.sinks, "sinks", 1),
            "policies": _words(self.policies, "policies", WAYS),
            "doses": _doses(self.doses),
            "interventions": _words(self.interventions, "interventions", ARMS),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        if missing := [word for word in ALWAYS if word not in self.policies]:
            raise SinkscopeError(
                f"policies={list(self.policies)} lack {missing[0]}: a report compares {', '.join(ALWAYS)}; give these."
            )
        if self.sinks >= self.cache:
            raise SinkscopeError(f"{self.sinks} sinks leave no window in a cache of {self.cache}: give fewer sinks.")

    @classmethod
    def of(cls, given: Any) -> Plan:
        """A plan from one, a mapping, or the path of a YAML file; SinkscopeError as the class itself."""
        if isinstance(given, (str, os.PathLike)):
            said = read_settings(
                given, "plan", "what to measure by name, such as `texts: [demo]`", "A plan before the run"
            )
            plan = cls.of(said)
            first = Path(os.path.expanduser(given)).read_text(encoding="utf-8").partition("\n")[0]
            if (hashed := SAVED.fullmatch(first)) and hashed[1] != plan.sha256:
                warn(
                    f"{given} was changed since it was written: its first line has the SHA-256 {hashed[1][:12]}.., and "
                    f"what it says now has {plan.sha256[:12]}.."
                )
            return plan
        if isinstance(given, Mapping):
            check_names(given, [each.name for each in fields(cls)], "part of a plan")
            return cls(**given)
        if not isinstance(given, cls):
            raise SinkscopeError(f"a {type(given).__name__} is no plan; give a sinkscope.Plan, a mapping or a file.")
        return given

    @property
    def content(self) -> dict[str, Any]:
        """All that it says, as plain data."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        doses = [str(dose) if dose == -float("inf") else dose for dose in self.doses]
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
        return plain | {"doses": doses}

    @cached_property
    def canonical(self) -> str:
        """The same as one line of JSON, which is hashed."""
        return json.dumps(self.content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The hash of what it says, in a file or not."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def sources(self) -> list[str | None]:
        """The texts as `read_text` takes them."""
        return [None if each["source"] == DEMO else each["source"] for each in self.texts]

    @property
    def names(self) -> list[str]:
        """What to call each text, each by a name of its own."""
        found: list[str] = []
        for name in map(text_name, self.sources):
            found.append(name if name not in found else f"{name} ({1 + len(found)})")
        return found

    @property
    def count(self) -> int:
        """Sequences of each text."""
        return self.segments or self.sequences or COUNT

    @property
    def thresholds(self) -> dict[str, float]:
        """What is read off records when sentences are made of them."""
        return {"epsilon": self.epsilon, "margin": self.margin}

    @checks_types
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as YAML, with its hash in a comment; a file of that name stays as it is, and is refused.

        Raises:
            SinkscopeError: there is something of that name, or it cannot be written.
        """
        place = Path(os.path.expanduser(path))
        if os.path.lexists(place):
            raise SinkscopeError(f"{place} is there already, and a plan is written once: give another name.")
        said = yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True, width=120)
        write_text(place, f"{SAYS}{self.sha256}\n{said}", "the plan")
        return place


def _model(given: Any) -> dict[str, str] | None:
    if given is None:
        return None
    options = dict(given) if isinstance(given, Mapping) else {"source": given}
    check_names(options, ("source", "weights", *LOADING), "part of a plan's model")
    options = {name: os.fspath(each) if isinstance(each, os.PathLike) else each for name, each in options.items()}
    options = {name: each for name, each in options.items() if each is not None}
    if not all(isinstance(each, str) and each for each in options.values()) or "source" not in options:
        raise SinkscopeError(
            f"model={shown(given)} names no model; give 'demo', a directory, a .gguf file, a name on the Hub, or a "
            "mapping with one of these as `source`."
        )
    if "weights" in options and not SHA256.fullmatch(options["weights"]):
        raise SinkscopeError(f"weights={shown(options['weights'])} are no hash of weights: give 64 hexadecimal digits.")
    return {name: options[name] for name in ("source", "weights", *LOADING) if name in options}


def text_entries(given: Any) -> tuple[dict[str, str], ...]:
    """The texts of a plan, each with its source and perhaps its hash."""
    found: list[dict[str, str]] = []
    for each in [given] if isinstance(given, Mapping) else several(given, "texts"):
        text = dict(each) if isinstance(each, Mapping) else {"source": DEMO if each is None else each}
        check_names(text, ("source", "sha256"), "part of a plan's text")
        source = text.get("source")
        if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
            raise SinkscopeError(f"{shown(each)} names no text; give a file, 'hf:name', 'demo', or one as `source`.")
        text["source"] = os.fspath(source)
        if not isinstance(text["source"], str):
            raise SinkscopeError(f"{shown(each)} names no text; give a file, 'hf:name', 'demo', or one as `source`.")
        if "sha256" in text and not (isinstance(text["sha256"], str) and SHA256.fullmatch(text["sha256"])):
            raise SinkscopeError(f"sha256={shown(text['sha256'])} is no SHA-256: give 64 hexadecimal digits.")
        if text["source"] in [other["source"] for other in found]:
            raise SinkscopeError(f"the text {text['source']!r} is given twice: give each once.")
        found.append(text)
    if not found:
        raise SinkscopeError(f"texts={shown(given)} is empty; give at least one.")
    return tuple(found)


def _words(given: Any, name: str, known: Iterable[str]) -> tuple[str, ...]:
    words = several(given, name)
    check_names(words, known, f"word of {name}")
    if not words or len(set(words)) < len(words):
        raise SinkscopeError(f"{name}={shown(given)} is empty or has a word twice; give each once.")
    return tuple(words)


def _doses(given: Any) -> tuple[float, ...]:
    from sinkscope.experiments.doses import checked_doses

    doses = tuple(checked_doses(several(given, "doses")))
    if 0.0 not in doses or len(doses) < 2:
        raise SinkscopeError(f"doses={shown(given)} lack 0, to which the others are compared: give it and others.")
    return doses
