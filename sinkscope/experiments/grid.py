"""What a sweep is to run: experiments on models x texts x policies x sinks x cache sizes x seeds.

The same words in Python and in a YAML file:

    models: [demo, {source: path/to/model, dtype: bfloat16, device: cuda}]
    texts: [demo, {source: book.txt, tokens: 2048, start: [0, 100000]}]
    experiments: {perplexity: {}, measure: {probes: [Entropy, {SinkMass: {first: 1}}]}}
    policies: [dense, window, sinks, {TOVA: {budget: 512}}]
    sinks: [1, 4]
    cache_sizes: [256, 512]
    seeds: [0, 1, 2]

Importing this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from sinkscope.arguments import check_names, in_characters, instance, one_of, one_or_several, several, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.sampling import STARTS, read_segments, sequences
from sinkscope.settings_file import read_settings
from sinkscope.texts import read_stream, read_tokens, text_name

if TYPE_CHECKING:
    from torch import Tensor

    from sinkscope.experiments.cells import Experiment
    from sinkscope.experiments.runner import ModelSource
    from sinkscope.policies import Policy

VALUES = {"sinks": "kept", "phantom": "zeroed", "mean-values": "mean", "values-only": "added"}  # what sinks hand on
WAYS = ("dense", "window", "recompute", *VALUES)
DEMO = "demo"  # model or text
LOADING = ("dtype", "device", "device_map", "revision")  # of a model; its own code is run only from Python


@dataclass(frozen=True)
class Segment:
    """A part of a text.

    Args:
        source: a file, "hf:name" or "demo", as in `sinkscope.read_text`.
        tokens: of each text.
        start: how many to skip.
        sequences: so many texts, one behind the other and each with what the tokenizer puts in front; one when None.
        segments, starts: so many texts from all over the source instead, as in `sinkscope.read_segments`.
    """

    source: str
    tokens: int = 4096
    start: int = 0
    sequences: int | None = None
    segments: int | None = None
    starts: str = STARTS[0]

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise SinkscopeError(f"source={self.source!r} names no text; give a file, 'hf:name' or 'demo'.")
        whole_number(self.tokens, "tokens", 2)
        whole_number(self.start, "start", 0)
        if self.sequences is not None:
            whole_number(self.sequences, "sequences", 1)
        if self.segments is not None:
            whole_number(self.segments, "segments", 1)
            if self.start or self.sequences is not None:
                raise SinkscopeError("segments are from all over a text; leave start and sequences out beside them.")
        one_of(self.starts, "starts", STARTS)
        if self.source != DEMO and os.path.isfile(place := os.path.expanduser(self.source)):
            object.__setattr__(self, "source", os.path.realpath(place))  # workers may stand in another folder

    @property
    def name(self) -> str:
        shown = text_name(None if self.source == DEMO else self.source)
        if self.segments is not None:
            return f"{shown}, {self.segments} {self.starts} segments of {self.tokens}"
        count = self.tokens * (self.sequences or 1)
        return f"{shown} [{self.start}:{self.start + count}]" + (f" in {self.sequences}" if self.sequences else "")

    def read(self, tokenizer: Any) -> list[Tensor]:
        """Its tokens, as texts [token]."""
        source = None if self.source == DEMO else self.source
        if tokenizer is None:
            raise SinkscopeError("a model without a tokenizer can read no text; give token ids in its place.")
        if self.segments is not None:
            return list(read_segments(tokenizer, source, self.tokens, self.segments, starts=self.starts))
        if self.sequences is None:
            return list(read_tokens(tokenizer, source, self.tokens, start=self.start))
        stream, front = read_stream(tokenizer, source, self.start + self.tokens * self.sequences)
        return list(sequences(stream[self.start :], self.tokens, self.sequences, bos=front))


@dataclass(frozen=True)
class Grid:
    """Experiments, and the axes that they are run over. Each axis takes one level or several.

    >>> models, texts = {"tiny": model}, {"text": ids}
    >>> grid = sinkscope.Grid(models, texts, policies=["dense", "sinks"], sinks=2, cache_sizes=16)
    >>> sinkscope.sweep(grid).policy.tolist()
    ['dense', 'sinks 2+14']

    Args:
        models: what `sinkscope.load` takes, "demo" for the demo model, or a mapping with `source` and dtype, device,
            device_map or revision; or names of your own for these, as {name: model}.
        texts: a file, "hf:name", "demo", or a mapping with the arguments of a `Segment`, whose `start` may have several
            levels; in Python also token ids, as {name: ids}.
        experiments: "measure", "perplexity", "recall" and "interventions", alone or with options, as {name: options}.
            Interventions are run on dense attention, over `sinks` and `seeds`.
        policies: dense, window, recompute, sinks, phantom, mean-values and values-only, at each cache size and number
            of sinks that they have; the classes of `sinkscope.policies` with their arguments, as {name: arguments};
            in Python also instances of any class. dense, window and sinks when None.
        sinks: how many first tokens are kept, or taken away.
        cache_sizes: tokens, sinks included.
        seeds: of what is drawn at random: interventions, and the sample of re-computation where it has one.
        tokens: of each text that does not say.

    Raises:
        SinkscopeError: an unknown name, an axis that is empty, has a level twice or is without effect, sinks that leave
            no window.
    """

    models: Any = DEMO
    texts: Any = DEMO
    experiments: Any = "perplexity"
    policies: Any = None
    sinks: Any = 4
    cache_sizes: Any = 512
    seeds: Any = 0
    tokens: int = 4096

    sources: dict[str, ModelSource] = field(init=False, repr=False)
    segments: dict[str, Any] = field(init=False, repr=False)  # a `Segment`, or texts [token]
    done: dict[str, Experiment] = field(init=False, repr=False)
    ways: list[Policy] = field(init=False, repr=False)
    counts: list[int] = field(init=False, repr=False)
    draws: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        whole_number(self.tokens, "tokens", 2)
        sizes = _numbers(self.cache_sizes, "cache_sizes", 1)
        counts, draws = _numbers(self.sinks, "sinks", 0), _numbers(self.seeds, "seeds", 0)
        experiments = _experiments(self.experiments)
        found = {
            "sources": _models(self.models),
            "segments": _texts(self.texts, self.tokens),
            "done": experiments,
            "ways": _policies(self.policies, sizes, counts),
            "counts": counts,
            "draws": draws,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        self._check_effects(sizes)

    @classmethod
    def of(cls, given: Any) -> Grid:
        """A grid from one, a mapping, or the path of a YAML file; SinkscopeError as the class itself."""
        if isinstance(given, (str, os.PathLike)):
            given = read_settings(given, "grid", "axes by name, such as `models: [demo]`", "Sweeps")
        if isinstance(given, Mapping):
            check_names(given, [each.name for each in fields(cls) if each.init], "part of a grid")
            return cls(**given)
        if not isinstance(given, cls):
            raise SinkscopeError(f"a {type(given).__name__} is no grid; give a sinkscope.Grid, a mapping or a file.")
        return given

    def _check_effects(self, sizes: list[int]) -> None:
        """Raise SinkscopeError for levels that would make no difference."""
        under = [each for each in self.done.values() if each.has_policies]
        settings = [
            one for each in self.done.values() for one in each.settings_over(self.ways, self.counts, self.draws)
        ]
        if self.policies is not None and not under:
            raise SinkscopeError(
                "interventions are run on dense attention, so the policies of this grid are without effect; leave them "
                "out, or add an experiment such as perplexity."
            )
        if not settings:
            raise SinkscopeError("sinks=0 leave interventions nothing to take away; give a number of 1 or more.")
        words = [one for one in _several(WAYS[:1] if self.policies is None else self.policies) if isinstance(one, str)]
        words = ["dense", "window", "sinks"] if self.policies is None else words
        has_sinks = (under and set(words) & set(VALUES)) or len(under) < len(self.done)
        for name, levels, is_used in (
            ("sinks", self.counts, has_sinks),
            ("cache_sizes", sizes, under and set(words) - {"dense"}),
            ("seeds", self.draws, any(one.seed is not None for one in settings)),
        ):
            if len(levels) > 1 and not is_used:
                raise SinkscopeError(
                    f"{name}={levels} are without effect: no policy or experiment of this grid depends on them; give "
                    "one, or leave them out."
                )


def named_policies(words: Iterable[str], cache_size: int, sinks: int) -> list[Policy]:
    """The policies of these words at one cache size; one given twice counts once."""
    from sinkscope.policies import Dense, Recompute, SinkWindow, Window

    made: dict[str, Callable[[], Policy]] = {
        "dense": Dense,
        "window": partial(Window, cache_size),
        "recompute": partial(Recompute, cache_size),
        **{word: partial(SinkWindow, sinks, cache_size - sinks, values=kept) for word, kept in VALUES.items()},
    }
    policies = []
    for word in dict.fromkeys(words):
        if word not in made:
            raise SinkscopeError(f"{word!r} is no policy; give any of {', '.join(WAYS)}.")
        if word in VALUES and sinks >= cache_size:
            raise SinkscopeError(
                f"{sinks} sinks leave no window in a cache of {cache_size}; give fewer sinks or more cache."
            )
        policies.append(made[word]())
    return policies


def _policies(given: Any, sizes: list[int], counts: list[int]) -> list[Policy]:
    """Every policy that the words make at these levels, each once, and those that are given whole."""
    from sinkscope import policies
    from sinkscope.policies import Policy

    kinds = {name: kind for name in policies.__all__ if isinstance(kind := getattr(policies, name), type)}
    found: list[Policy] = []
    for each in _several(("dense", "window", "sinks") if given is None else given, "policies"):
        if isinstance(each, str) and each not in kinds:
            check_names([each], [*WAYS, *kinds], "policy")
            made = [policy for size in sizes for count in counts for policy in named_policies([each], size, count)]
        else:
            made = [instance(each, kinds, "policy")]
        made = [policy for number, policy in enumerate(made) if policy not in made[:number]]
        for policy in made:
            if not isinstance(policy, Policy):
                raise SinkscopeError(f"{policy!r} is no policy; give {', '.join(WAYS)}, or instances of a class.")
            policy.check()
            if policy in found:
                raise SinkscopeError(f"the policy {policy.name!r} is given twice; give each once.")
        found += made
    names = [policy.name for policy in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise SinkscopeError(f"two policies that differ are called {twice[0]!r}; give one a label of its own.")
    return found


def _experiments(given: Any) -> dict[str, Experiment]:
    from sinkscope.experiments.cells import EXPERIMENTS, Experiment

    asked = [{name: options} for name, options in given.items()] if isinstance(given, Mapping) else _several(given)
    made: dict[str, Experiment] = {}
    for each in asked:
        one = instance(each, EXPERIMENTS, "experiment")
        if not isinstance(one, Experiment):
            raise SinkscopeError(f"{one!r} is no experiment; give any of {', '.join(EXPERIMENTS)}.", page="Sweeps")
        name = next((name for name, kind in EXPERIMENTS.items() if kind is type(one)), type(one).__name__)
        _add(made, name, one, "experiment")
    return _not_empty(made, "experiments", given)


def _models(given: Any) -> dict[str, ModelSource]:
    from torch import nn

    from sinkscope.experiments.runner import ModelSource

    found: dict[str, ModelSource] = {}
    for name, each in _named(given, "models"):
        options = dict(each) if isinstance(each, Mapping) else {"source": each}
        check_names(options, ("source", *LOADING), "part of a model")
        source = options.pop("source", None)
        if not isinstance(source, (str, os.PathLike, nn.Module)) or (options and isinstance(source, nn.Module)):
            raise SinkscopeError(
                f"{each!r} is no model; give 'demo', a directory, a .gguf file, a name on the Hub, or a mapping with "
                "one of these as `source`.",
                page="Sweeps",
            )
        shown = type(source).__name__ if isinstance(source, nn.Module) else os.fspath(source)
        _add(found, name or shown, ModelSource.of(None if source == DEMO else source, **options), "model")
    return _not_empty(found, "models", given)


def _texts(given: Any, tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, each in _named(given, "texts"):
        if isinstance(each, os.PathLike):
            each = os.fspath(each)
        if not isinstance(each, (str, Mapping, Segment)):  # token ids
            from sinkscope.scope.measure import texts_of

            if not name:
                raise SinkscopeError("token ids need a name to be called by in the table; give them as {name: ids}.")
            _add(found, name, texts_of(each), "text")
            continue
        options: dict[str, Any] = dict(each) if isinstance(each, Mapping) else {"source": each}
        if isinstance(each, Mapping):
            check_names(options, [one.name for one in fields(Segment)], "part of a text")
            if "source" not in options:
                raise SinkscopeError(f"the text {dict(each)!r} says not what to read; give a source.")
        starts = one_or_several(options.pop("start", 0), "start", lambda start: whole_number(start, "start", 0))
        for start in starts if not isinstance(each, Segment) else [0]:
            part = each if isinstance(each, Segment) else Segment(**({"tokens": tokens} | options), start=start)
            shown = name if name and len(starts) == 1 else f"{name or ''} from {start}" if name else part.name
            _add(found, shown, part, "text")
    return _not_empty(found, "texts", given)


def _named(given: Any, axis: str) -> list[tuple[str, Any]]:
    """The levels of an axis with the names that they are given, or none."""
    if isinstance(given, Mapping):
        if "source" in given:
            raise SinkscopeError(f"{axis} is a list of models or texts, or {{name: one}}; put this one in brackets.")
        return [(str(name), each) for name, each in given.items()]
    return [("", each) for each in _several(given)]


def _several(given: Any, axis: str = "") -> list[Any]:
    from torch import Tensor, nn

    one = isinstance(given, (os.PathLike, Mapping, Segment, Tensor, nn.Module))
    levels = [given] if one else several(given, axis or "an axis")
    return _not_empty(levels, axis, given) if axis else levels


def _numbers(given: Any, name: str, least: int) -> list[int]:
    levels = [whole_number(each, name, least) for each in _several(given, name)]
    if len(set(levels)) < len(levels):
        raise SinkscopeError(f"{name}={given!r} has a level twice; give each once.")
    return levels


def _add(found: dict[str, Any], name: str, value: Any, what: str) -> None:
    name = in_characters(name)
    if name in found:
        raise SinkscopeError(
            f"the {what} {name!r} is given twice; give each once, or names of their own as {{name: ...}}."
        )
    found[name] = value


def _not_empty(levels: Any, axis: str, given: Any) -> Any:
    if not levels:
        raise SinkscopeError(f"{axis}={given!r} is empty; give at least one.")
    return levels
