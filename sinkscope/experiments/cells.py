"""The experiments that a sweep is made of, and a cell: one of them on one model and text, kept as a record.

An experiment says what it depends on besides model and text, checks that a model can take it, and gives a record. What
it does not depend on makes no other cell: a dense cache has no size, and only what is drawn at random has a seed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import xarray as xr
from torch import Tensor, nn

from sinkscope import normalisers, probes
from sinkscope.arguments import instance, one_or_several, whole_number
from sinkscope.attention.placement import is_built_in
from sinkscope.definition import check_resumable, definition
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.inside_model import EvictKeys, SetMassive
from sinkscope.experiments.intervention import Intervention, Repeat, ReplaceTokens, Shift
from sinkscope.experiments.interventions import possible, run_interventions, usual
from sinkscope.experiments.perplexity import BATCH_TOKENS, Run, check_run, read_texts, record_of
from sinkscope.experiments.recall import DISTANCES, passages_of, recall
from sinkscope.experiments.run_folder import RECORD, read_card, write_cell
from sinkscope.experiments.runner import Advance, Cell, ModelSource
from sinkscope.models.identity import difference, identity
from sinkscope.normalisers import Normaliser
from sinkscope.policies import Dense, Policy
from sinkscope.probes import Probe
from sinkscope.record import open_record
from sinkscope.scope.binding import limit_notes
from sinkscope.scope.measure import batches_of, measure
from sinkscope.scope.scope import attached
from sinkscope.streaming.checkpoint import Checkpoint

KNOWN: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()
ONE_AT_A_TIME = threading.Lock()  # threads of a process share its model, which can carry one policy
NORMALISERS = {name: getattr(normalisers, name) for name in normalisers.__all__}
PROBES = {each.__name__: each for each in probes.probe_classes() if each.makes}
INTERVENTIONS = {each.__name__: each for each in (EvictKeys, Repeat, ReplaceTokens, SetMassive, Shift)}


class Setting(NamedTuple):
    """What an experiment is run under: of the axes of a grid, those that it depends on."""

    policy: Policy
    sinks: int = 0  # first tokens that count as sinks; 0 where the policy alone says
    seed: int | None = None  # None where nothing is drawn at random


@dataclass(frozen=True)
class Experiment(ABC):
    """What is done in a cell; its fields are its options."""

    told: dict[str, str] = field(init=False, repr=False, compare=False)  # the options as words

    has_policies: ClassVar[bool] = True  # whether it is run under policies, and not on dense attention alone
    reads_words: ClassVar[bool] = False  # whether it needs the tokenizer

    def __post_init__(self) -> None:
        self._check_options()
        object.__setattr__(self, "told", self._told())  # here, as a class of one's own looks otherwise in a worker

    def _check_options(self) -> None:  # noqa: B027 - there may be nothing to check
        """Turn names into instances; SinkscopeError for options that cannot be."""

    def settings_over(self, policies: Sequence[Policy], sinks: Sequence[int], seeds: Sequence[int]) -> list[Setting]:
        """What it is run under, of these levels."""
        return [Setting(policy) for policy in policies]

    @abstractmethod
    def check(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting) -> list[str]:
        """What a user should know of it on this model; SinkscopeError where it cannot be run."""

    @abstractmethod
    def run(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting, stay: Checkpoint) -> Any:
        """The record; what is not finished may be kept in the checkpoint."""

    def settings(self, tokenizer: Any, texts: list[Tensor], setting: Setting) -> dict[str, Any]:
        """Everything that the numbers follow from besides the model."""
        tokens = hashlib.sha256(b"|".join(text.numpy().tobytes() for text in texts)).hexdigest()
        policy = setting.policy
        defined = {"policy_definition": policy.definition} if policy.definition else {}
        given = {"experiment": type(self).__name__, "text": tokens, "policy": policy, **defined}
        return given | {"sinks": setting.sinks, "seed": setting.seed} | self.told

    def _told(self) -> dict[str, str]:
        """The options; by their code what is of a class from outside the package."""
        told: dict[str, str] = {}
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            told[option.name] = repr(value)
            for number, each in enumerate(value if isinstance(value, tuple) else (value,)):
                if isinstance(each, Normaliser) and each.definition:
                    told[f"{option.name}_definition"] = each.definition
                elif isinstance(each, (Probe, Intervention)) and not is_built_in(type(each)):
                    told[option.name] = type(each).__qualname__  # a repr may hold an address
                    told[f"{option.name}_{number}_definition"] = definition(each)
        return told

    def _make(self, name: str, kinds: dict[str, Any], kind: type, what: str) -> None:
        """Turn the names of an option into instances."""
        given = getattr(self, name)
        if given is None:
            return
        several = isinstance(given, Iterable) and not isinstance(given, (str, dict))
        made = tuple(instance(each, kinds, what) for each in (given if several else [given]))
        for each in made:
            if not isinstance(each, kind):
                raise SinkscopeError(f"{each!r} is no {what}; give names or instances of {', '.join(kinds)}.")
        if not made or len(set(map(repr, made))) < len(made):
            raise SinkscopeError(f"{name}={given!r} is empty, or names one {what} twice; give each once.")
        object.__setattr__(self, name, made)


@dataclass(frozen=True)
class Perplexity(Experiment):
    """The loss of every token, as `sinkscope.perplexity` gives it.

    Args:
        block: tokens per forward pass.
        samples: how many tokens of each text re-computation scores beyond its first window; all when None, as for every
            other policy, so that cells can be compared.
        normaliser: how scores become weights; the model's own when None.
    """

    block: int = 1024
    samples: int | None = None
    normaliser: Any = None

    def _check_options(self) -> None:
        whole_number(self.block, "block", 1)
        if self.samples is not None:
            whole_number(self.samples, "samples", 1)
        made = instance(self.normaliser, NORMALISERS, "normaliser")
        if made is not None and not isinstance(made, Normaliser):
            raise SinkscopeError(f"{made!r} is no normaliser; give a name or an instance, such as Softmax1.")
        object.__setattr__(self, "normaliser", made)

    def settings_over(self, policies: Sequence[Policy], sinks: Sequence[int], seeds: Sequence[int]) -> list[Setting]:
        drawn = [policy.recomputed and self.samples is not None for policy in policies]
        return [
            Setting(policy, seed=seed)
            for policy, is_drawn in zip(policies, drawn, strict=True)
            for seed in (seeds if is_drawn else [None])
        ]

    def check(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting) -> list[str]:
        check_run(model, texts, self.how(setting))
        if self.normaliser is not None:
            _attach(model, policy=setting.policy, normaliser=self.normaliser)
        return limit_notes(model, setting.policy, max(map(len, texts)))

    def how(self, setting: Setting) -> Run:
        return Run(self.block, self.samples, setting.seed or 0, self.normaliser)

    def run(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting, stay: Checkpoint) -> Any:
        how, batches = self.how(setting), list(batches_of(texts, BATCH_TOKENS))
        done = read_texts(model, texts, setting.policy, how, stay, stay.read(batches), False)
        return record_of(model, texts, [setting.policy], [done]).assign_attrs(how.attributes())


@dataclass(frozen=True)
class Measure(Experiment):
    """Where attention goes, as `sinkscope.measure` records it.

    Args:
        probes: what to measure, by name or as instances; those that cost no second pass when None.
    """

    probes: Any = None

    def _check_options(self) -> None:
        self._make("probes", PROBES, Probe, "probe")

    def check(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting) -> list[str]:
        if setting.policy.recomputed:
            raise SinkscopeError(
                f"`{setting.policy.name}` runs every window as a text of its own, so there is no attention over the "
                "text to measure; leave it out of the policies, or measure in a grid of its own."
            )
        _attach(model, policy=setting.policy, probes=self.probes or ())
        return limit_notes(model, setting.policy, max(map(len, texts)))

    def run(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting, stay: Checkpoint) -> Any:
        policy = None if setting.policy.is_dense else setting.policy
        return measure(model, texts, self.probes, policy=policy, progress=False)


@dataclass(frozen=True)
class Recall(Experiment):
    """What is left of a passage that was read so many tokens ago, as `sinkscope.recall` measures it.

    Args:
        distances, passage, passages, block: as there.
    """

    distances: Any = DISTANCES
    passage: int = 32
    passages: int = 8
    block: int = 1024

    def _check_options(self) -> None:
        away = one_or_several(self.distances, "distances", lambda each: whole_number(each, "distances", 1))
        object.__setattr__(self, "distances", tuple(away))
        for name, least in (("passage", 2), ("passages", 1), ("block", 1)):
            whole_number(getattr(self, name), name, least)

    def check(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting) -> list[str]:
        read = passages_of(self._one(texts), self.distances, self.passage, self.passages).texts
        check_run(model, read, Run(self.block))
        return limit_notes(model, setting.policy, max(map(len, read)))

    def run(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting, stay: Checkpoint) -> Any:
        options: dict[str, Any] = {option.name: getattr(self, option.name) for option in fields(self)[1:]}
        return recall(model, self._one(texts), [setting.policy], **options, progress=False)

    def _one(self, texts: list[Tensor]) -> Tensor:
        if len(texts) > 1:
            raise SinkscopeError(f"recall takes one text, and this has {len(texts)} sequences; leave out `sequences`.")
        return texts[0]


@dataclass(frozen=True)
class Interventions(Experiment):
    """What happens without the sinks, as `sinkscope.run_interventions` measures it, on dense attention.

    Args:
        interventions: by name or as instances; the usual ones that the model can take when None.
        start: the first query that notices.
        first: of how many first keys the sink mass is shown.
    """

    interventions: Any = None
    start: int = 64
    first: int = 1

    has_policies = False
    reads_words = True

    def _check_options(self) -> None:
        self._make("interventions", INTERVENTIONS, Intervention, "intervention")
        whole_number(self.start, "start", 2)
        whole_number(self.first, "first", 1)

    def settings_over(self, policies: Sequence[Policy], sinks: Sequence[int], seeds: Sequence[int]) -> list[Setting]:
        return [Setting(Dense(), count, seed) for count in sinks if count for seed in seeds]

    def check(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting) -> list[str]:
        conditions = {"tokenizer": tokenizer, "start": self.start, "sinks": setting.sinks, "seed": setting.seed}
        able, refused = possible(model, texts, self.interventions or usual(tokenizer), **conditions)
        if refused and (self.interventions or not able):
            raise SinkscopeError(next(iter(refused.values())))
        return []

    def run(self, model: nn.Module, tokenizer: Any, texts: list[Tensor], setting: Setting, stay: Checkpoint) -> Any:
        conditions: dict[str, Any] = {"start": self.start, "sinks": setting.sinks, "seed": setting.seed}
        chosen = self.interventions
        return run_interventions(
            model, texts, chosen, tokenizer=tokenizer, first=self.first, progress=False, **conditions
        )

    def settings(self, tokenizer: Any, texts: list[Tensor], setting: Setting) -> dict[str, Any]:
        return super().settings(tokenizer, texts, setting) | {"tokenizer": _tokenizer_hash(tokenizer)}


EXPERIMENTS: dict[str, type[Experiment]] = {
    "measure": Measure,
    "perplexity": Perplexity,
    "recall": Recall,
    "interventions": Interventions,
}


def _attach(model: nn.Module, **slots: Any) -> None:
    """Raise SinkscopeError where a model cannot have its slots filled so."""
    with attached(model, **slots):
        pass


def _tokenizer_hash(tokenizer: Any) -> str:
    """A hash of what a tokenizer's tokens are."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()


class Finished(NamedTuple):
    """A finished cell: its rows of the table, and its record where that is not left on disk."""

    rows: list[dict[str, Any]]
    record: xr.Dataset | None = None
    problem: str = ""  # why there is neither, where a cell could not be run


@dataclass(frozen=True, eq=False)
class RecordCell(Cell[Finished]):
    """One experiment on one model and text, under one setting."""

    source: ModelSource
    texts: list[Tensor]
    experiment: Experiment
    setting: Setting
    settings: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # what to call it: its model, text and policy
    summary: Callable[[xr.Dataset], list[dict[str, Any]]] | None = None  # makes its rows
    is_whole: bool = True  # whether the record is wanted, also where it is on disk
    is_forgiving: bool = False  # whether an error of this cell lets the others run on

    def path(self, folder: Path | None) -> Path | None:
        if folder is None:
            return None
        check_resumable(self.settings)
        return folder / self.key

    def read(self, path: Path | None) -> Finished | None:
        card = None if path is None else read_card(path)
        if path is None or card is None:
            return None
        return Finished(card.rows, open_record(path / RECORD) if self.is_whole else None)

    def run(self, path: Path | None, advance: Advance) -> Finished:
        with ONE_AT_A_TIME:
            card = None if path is None else read_card(path)
            if path is not None and card is not None:  # another writer was here meanwhile
                return Finished(card.rows, open_record(path / RECORD))
            try:
                result = self._run(path)
            except SinkscopeError as problem:
                if not self.is_forgiving:
                    raise
                return Finished([], None, str(problem))
            if path is not None:
                self.keep(result, path)
                path.with_suffix(".safetensors").unlink(missing_ok=True)  # how far it was
            return result

    def keep(self, result: Finished, path: Path) -> None:
        if result.record is not None:
            about = self.about | {name: result.record.attrs.get(name) for name in ("date", "seconds")}
            write_cell(path, self.settings, about, result.rows, result.record)

    def _run(self, path: Path | None) -> Finished:
        begun, (model, tokenizer) = time.perf_counter(), self._opened()
        stay = Checkpoint(None if path is None else path.with_suffix(".safetensors"), self.settings)
        record = self.experiment.run(model, tokenizer, self.texts, self.setting, stay)
        named = {"text": self.about["text"]} if "text" in self.about else {}
        record = record.assign_attrs(named, cell=self.key, seconds=round(time.perf_counter() - begun, 3))
        return Finished([] if self.summary is None else self.summary(record), record)

    def _opened(self) -> tuple[nn.Module, Any]:
        """The model and its tokenizer; loaded again if the one that is held has become another in the meantime."""
        for _ in range(2):
            model = self.source.open()
            tokenizer = self.source.tokenizer() if self.experiment.reads_words else None
            if not self.source.is_named:  # it travels with the cell
                return model, tokenizer
            found = {name: str(value) for name, value in identity_of(self.source, model).items()}
            known = {name: str(self.settings.get(name)) for name in found}
            if found == known:
                return model, tokenizer
            self.source.forget()
        raise SinkscopeError(
            f"a worker found another model in {self.source.given or 'the demo model'} than this run began with "
            f"({difference(known, found)}); give every machine the same files and versions, or pass a loaded model."
        )


def identity_of(source: ModelSource, model: nn.Module) -> dict[str, str]:
    """Everything that the numbers of a model follow from; told once of one that nobody else holds."""
    if not source.is_named:
        return identity(model)
    if model not in KNOWN:
        KNOWN[model] = identity(model)
    return KNOWN[model]
