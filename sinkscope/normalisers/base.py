"""What a normaliser is, how the scores of a query become weights, and those that need no whole rows.

A class with `weights` alone works everywhere, run block by block on whole rows of scores. Two kinds are quicker, by
what their weights follow from. A `VirtualKey` adds one term to the denominator of softmax, so softmax attention and its
log-sum-exp give it without a second pass. In a `Pointwise` normaliser a key's weight is a function of its own score, of
the query's log-sum-exp and of how many keys the query sees: one more pass over the scores, in tiles of any shape.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sinkscope.arguments import real_number
from sinkscope.attention.attend_layer import Weighing, check_shares, score_by_score, whole_rows
from sinkscope.attention.masks import is_hidden
from sinkscope.attention.placement import Placed, passed_over
from sinkscope.errors import SinkscopeError, safe_repr, shown

LARGEST = 1e37  # of a bias or a logit, beside which float32 still tells hidden keys and finite scores apart
ALIKE = 1e-4  # weights of the same row may differ by so much when they are made among others


@dataclass(frozen=True, kw_only=True, repr=False)
class Normaliser(Placed, ABC):
    """How scores become weights, in all or in chosen layers and heads.

    For a normaliser of one's own, `weights` is all there is to write, as in `Sparsemax`. Weights of a query follow from
    that query's own scores in one head; they need not sum to one.

    >>> class Squared(sinkscope.Normaliser):
    ...     def weights(self, scores):
    ...         kept = scores.relu() ** 2
    ...         return kept / (kept.sum(-1, keepdim=True) + 1)
    >>> sinkscope.perplexity(model, ids, normaliser=Squared()).attrs["normaliser"]
    'Squared()'
    """

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """The definition: weights of the shape of the scores, 0 where a key is hidden.

        Args:
            scores: [batch, head, query, key], minus infinity where a key is hidden. Each row holds all keys that its
                query sees, and any number of hidden ones.
        """

    def check_weights(self, heads: int | None, device: torch.device | str = "cpu") -> None:
        """Try a normaliser on small scores, in a layer of so many query heads; None where that is not known.

        SinkscopeError is raised for weights of another shape, not finite, below 0 or on hidden keys, and for those that
        follow from anything but the scores that a query sees in one head.
        """
        form: Any = quicker_form(self)
        kind, asked = type(self).__name__, IDEAS[form]
        written: Any = inspect.unwrap(getattr(self.weights, "__func__", self.weights))
        called = written.__code__.co_names if form is None and hasattr(written, "__code__") else ()
        called = ("virtual_logit",) if written is VirtualKey.weights else called
        if member := passed_over(type(self), tuple(IDEAS.values()), (asked, *called)):
            raise SinkscopeError(
                f"the weights of {kind} are made by its `{asked}`, so nobody asks the `{member}` that it gives as "
                "well; leave one of them out, or give it another name. A normaliser with `weights` alone derives from "
                "sinkscope.Normaliser.",
                page="A policy, a normaliser or a probe of my own",
            )
        if form is VirtualKey:
            if (
                heads is not None
                and (logit := logit_of(self, heads, device)) is not None
                and not (logit < torch.inf).all()
            ):
                raise SinkscopeError(f"`virtual_logit` of {self!r} gave NaN or infinity; give numbers, or None.")
            return
        scores = small_scores(heads or 1, device)
        hidden = scores[0, 0].isneginf()
        with torch.no_grad():
            found = self._tried(scores)

            def other(part: Tensor) -> Tensor:
                return part.flip(2).roll(1, -1).nan_to_num(neginf=0.5).masked_fill(hidden, -torch.inf)

            later = torch.cat([scores[:, :1], other(scores[:, 1:])], 1)
            sooner = torch.cat([other(scores[:, :1]), scores[:, 1:]], 1)
            wider = torch.nn.functional.pad(scores, (0, 3), value=-torch.inf)
            self._try_alone(scores)
            many = small_scores(heads or 1, device, 70)
            all_of_many = self._tried(many)
            trials = [
                ("on more than its scores (asked again, they are others)", self._tried(scores), found),
                ("on the other queries", self._tried(scores[:, :, 2:3]), found[:, :, 2:3]),
                ("on the other texts of the batch", self._tried(scores[1:]), found[1:]),
                ("on the other texts of the batch", self._tried(scores[:1]), found[:1]),
                ("on the other heads", self._tried(later)[:, :1], found[:, :1]),
                ("on the other heads", self._tried(sooner)[:, 1:], found[:, 1:]),
                ("on how many keys are hidden", self._tried(wider)[..., :7], found),
                ("on the order of the keys", self._tried(scores.flip(-1)).flip(-1), found),
                ("on the order of the keys", self._tried(many.flip(-1)).flip(-1), all_of_many),
                ("on how many other queries there are", self._tried(many[:, :, 40:42]), all_of_many[:, :, 40:42]),
            ]
            if form is Pointwise:
                trials += [
                    ("on which heads stand beside them", self._tried(scores[:, :1]), found[:, :1]),
                    ("on scores of other keys, beyond their log-sum-exp", self._tried(scores, 1, 3), found[..., 1:3]),
                ]
        for reason, weights, expected in trials:
            if not torch.allclose(weights, expected, rtol=ALIKE, atol=ALIKE):
                raise SinkscopeError(
                    f"the weights of {self!r} for a query depend {reason}, so they cannot be made block by block or "
                    "token by token; let them follow from the scores that the query sees in one head.",
                    page="A policy, a normaliser or a probe of my own",
                )

    def check_gradients(self, heads: int, device: torch.device | str = "cpu") -> None:
        """Try the gradients of the weights on small scores; SinkscopeError is raised where they cannot be had."""
        scores = small_scores(heads, device)
        with torch.enable_grad():
            weights = self._tried(scores.requires_grad_())
            wanted = _leaves(weights)
            in_graph = any(leaf is scores for leaf in wanted)
            if not in_graph and not torch.equal(weights, self._tried(scores.detach() * 2)):
                raise SinkscopeError(
                    f"the weights of {self!r} follow from the scores and have left their graph, so a model would train "
                    "without them; make them of the scores by torch, without `detach`, NumPy or no_grad."
                )
            if not wanted:
                return
            try:
                found = torch.autograd.grad(weights, wanted, torch.ones_like(weights), allow_unused=True)
            except RuntimeError as problem:
                raise SinkscopeError(f"the weights of {self!r} have no gradient: {problem}") from problem
        if not all(bool(gradient.isfinite().all()) for gradient in found if gradient is not None):
            raise SinkscopeError(
                f"gradients of the weights of {self!r} are NaN where keys are hidden, as 0 times infinity is; replace "
                "the scores of hidden keys by a finite number, and set the weights there to 0 with `masked_fill`."
            )

    def _try_alone(self, scores: Tensor) -> None:
        """Try the one key that the first query of every text sees; SinkscopeError where that cannot be weighed."""
        for seen in (1, 2):
            try:
                self._tried(scores[:, :, :1, :seen].nan_to_num(neginf=0.0))
            except SinkscopeError:
                raise
            except Exception as problem:
                raise SinkscopeError(
                    f"the weights of {self!r} cannot be made for a query that sees {seen} key{'s' * (seen > 1)}, as "
                    f"the first ones of every text do: {type(problem).__name__}: {problem}"
                ) from problem

    def _tried(self, scores: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Weights of some scores as they are made inside a layer, there for a part of the keys alone."""
        if quicker_form(self) is None:
            return whole_rows(self, scores)
        assert isinstance(self, Pointwise)
        lowest = scores.masked_fill(scores.isneginf(), torch.finfo(scores.dtype).min)
        lse, seen = lowest.logsumexp(-1, keepdim=True), (~scores.isneginf()).sum(-1, keepdim=True)
        kept, part = lse.clone(), lowest[..., first:last]
        weights = score_by_score(self, part.clone(), lse, seen[:, :1])
        if not torch.equal(lse, kept):
            raise SinkscopeError(f"`weigh` of {self!r} changed the log-sum-exp in place, which others read; copy it.")
        check_shares(self, weights, part, "the lowest float")
        return weights


def small_scores(heads: int, device: torch.device | str, queries: int = 5) -> Tensor:
    """Scores [batch, head, query, key] to try a normaliser on, some of them of hidden keys."""
    scores = torch.randn(2, heads, queries, queries + 2, generator=torch.Generator().manual_seed(0))
    hidden = torch.ones(queries, queries + 2, dtype=torch.bool).triu(3)
    return scores.masked_fill(hidden, -torch.inf).to(device)


def _leaves(made: Tensor) -> list[Tensor]:
    """All tensors that a gradient flows to from what was made of them."""
    found: list[Tensor] = []
    nodes, met = [made.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in met:
            met.add(node)
            nodes += [each for each, _ in node.next_functions]
            if (leaf := getattr(node, "variable", None)) is not None:
                found.append(leaf)
    return found


@dataclass(frozen=True, kw_only=True, repr=False)
class VirtualKey(Normaliser):
    """Softmax with one more key, of value 0: ``exp(x_i) / (exp(s) + sum_j exp(x_j))``."""

    @abstractmethod
    def virtual_logit(self, heads: int, device: torch.device) -> Tensor | None:
        """The logit ``s`` [head] of that key, or None where there is none."""

    def weights(self, scores: Tensor) -> Tensor:
        logit = logit_of(self, scores.shape[1], scores.device)
        if logit is None:
            return scores.softmax(-1)
        extra = logit.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]


@dataclass(frozen=True, repr=False)
class Softmax(VirtualKey):
    """``exp(x_i) / sum_j exp(x_j)``: the weights of a query sum to one, whether or not anything deserves them.

    On a model with learned sinks of its own it takes them away.

    >>> sinkscope.Softmax().weights(torch.zeros(1, 4))
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """

    def virtual_logit(self, heads: int, device: torch.device) -> None:
        return None


@dataclass(frozen=True, repr=False)
class Softmax1(VirtualKey):
    """``exp(x_i) / (1 + sum_j exp(x_j))`` (Miller 2023, "Attention is off by one"): a virtual key of logit 0.

    With nothing worth attending to, all weights can be small. StreamingLLM calls it the zero sink (Xiao et al. 2023,
    section 3.3).

    >>> with torch.no_grad(), sinkscope.attached(model, normaliser=sinkscope.Softmax1()):
    ...     logits = model(ids).logits
    """

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        return torch.zeros(heads, device=device)


@dataclass(frozen=True, repr=False)
class LearnedSink(VirtualKey):
    """One more logit per head joins the softmax and its column is dropped, so rows sum to less than one (gpt-oss).

    On a model with learned sinks of its own it takes their place. The logits are [head], or one number for all heads; a
    tensor that requires a gradient gets one.

    >>> sinkscope.perplexity(model, ids, normaliser=sinkscope.LearnedSink(2.0)).attrs["normaliser"]
    'LearnedSink(logit=2.0)'
    """

    logit: Tensor | float

    def __repr__(self) -> str:
        exact = self.logit.tolist() if isinstance(self.logit, Tensor) else self.logit  # every digit
        return super().__repr__().replace(f"logit={safe_repr(self.logit)}", f"logit={safe_repr(exact)}")

    def virtual_logit(self, heads: int, device: torch.device) -> Tensor:
        try:
            logit = torch.as_tensor(self.logit, dtype=torch.float32, device=device).flatten()
        except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
            raise SinkscopeError(f"LearnedSink(logit={shown(self.logit)}) holds no numbers; give some.") from problem
        if len(logit) not in (1, heads) or bool(logit.isnan().any()):
            raise SinkscopeError(
                f"LearnedSink holds {len(logit)} logits, or NaN, for {heads} heads; give one number, or one per head."
            )
        return logit.expand(heads)


@dataclass(frozen=True, kw_only=True, repr=False)
class Pointwise(Normaliser):
    """Weights that each follow from their own score."""

    @abstractmethod
    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        """Weights of a block of scores, any of the heads, queries and keys; 0 for a score at the lowest float.

        Args:
            scores: [batch, head, query, key].
            lse: [batch, head, query, 1] log-sum-exp over all keys the query sees.
            seen: [batch or 1, 1, query, 1] how many those are.
        """

    def weights(self, scores: Tensor) -> Tensor:
        hidden = is_hidden(scores)
        seen = (~hidden).sum(-1, keepdim=True)
        return self.weigh(scores, scores.logsumexp(-1, keepdim=True), seen).masked_fill(hidden, 0.0)


@dataclass(frozen=True, repr=False)
class ClippedSoftmax(Pointwise):
    """``clip((zeta - gamma) * softmax(x) + gamma, 0, 1)`` (Bondarenko et al. 2023, "Quantizable transformers").

    Small weights become exact zeros, so a head can do nothing without a sink to do it on. Gamma is at most 0, in the
    paper about ``-4 / T`` to ``-2 / T``; zeta is at least 1.

    >>> with torch.no_grad(), sinkscope.attached(model, normaliser=sinkscope.ClippedSoftmax(gamma=-0.03)):
    ...     logits = model(ids).logits
    """

    gamma: float = -0.03
    zeta: float = 1.0

    def __post_init__(self) -> None:
        if not (-1e4 < real_number(self.gamma) <= 0 and 1 <= real_number(self.zeta) < 1e4):
            raise SinkscopeError(f"{self!r} does not stretch softmax; give gamma <= 0 and zeta >= 1.")

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        return ((self.zeta - self.gamma) * (scores - lse).exp() + self.gamma).clamp(0, 1)


@dataclass(frozen=True, repr=False)
class ReLU(Pointwise):
    """``max(0, x_i) / n`` where the query sees n keys (Wortsman et al. 2023, "Replacing softmax with ReLU in ViTs").

    >>> with torch.no_grad(), sinkscope.attached(model, normaliser=sinkscope.ReLU(layers=[0])):
    ...     logits = model(ids).logits
    """

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        return scores.clamp(min=0) / seen


@dataclass(frozen=True, repr=False)
class Sigmoid(Pointwise):
    """``1 / (1 + exp(-(x_i + bias)))``: no key competes with another, and no sum has to be filled.

    Ramapuram et al. 2024, "Theory, analysis, and best practices for sigmoid self-attention".

    >>> with torch.no_grad(), sinkscope.attached(model, normaliser=sinkscope.Sigmoid(bias=-3.0)):
    ...     logits = model(ids).logits

    Args:
        bias: added to each score; minus the logarithm of the number of keys the query sees when None, so that even
            scores of 0 begin at a sum of about one.
    """

    bias: float | None = None

    def __post_init__(self) -> None:
        if self.bias is not None and not abs(real_number(self.bias)) < LARGEST:
            raise SinkscopeError(
                f"{shown(self)} has no finite bias below {LARGEST:.0e}; give one, or None for -log(keys seen)."
            )

    def weigh(self, scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
        bias = -seen.to(scores.dtype).log() if self.bias is None else self.bias
        return torch.sigmoid(scores + bias)


IDEAS: dict[Any, str] = {None: "weights", VirtualKey: "virtual_logit", Pointwise: "weigh"}
"""By form, the method that says what a normaliser does."""


def quicker_form(normaliser: Normaliser) -> type[VirtualKey] | type[Pointwise] | None:
    """The form that gives the weights of a normaliser without whole rows; None when `weights` itself has to be run.

    That is so where there is no such form, and where `weights` was redefined below it.
    """
    definition = getattr(normaliser.weights, "__func__", None)
    if isinstance(normaliser, VirtualKey) and definition is VirtualKey.weights:
        return VirtualKey
    return Pointwise if isinstance(normaliser, Pointwise) and definition is Pointwise.weights else None


def logit_of(normaliser: Any, heads: int, device: torch.device | str) -> Tensor | None:
    """The logit [head] of a virtual key in float32, or None where there is none."""
    given = normaliser.virtual_logit(heads, torch.device(device))
    if given is None:
        return None
    try:
        logit = torch.as_tensor(given).to(device, torch.float32)
        return logit.reshape(-1).expand(heads) if logit.dim() < 2 else logit.reshape(heads)
    except (TypeError, ValueError, RuntimeError) as problem:
        made = f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else shown(given)
        raise SinkscopeError(
            f"`virtual_logit` of {normaliser!r} gave {made} for {heads} heads; give a tensor [head], one number, or "
            "None."
        ) from problem


def weighing_of(normaliser: Normaliser | None, native: Tensor | None, heads: int, device: torch.device) -> Weighing:
    """How a layer weighs under a normaliser, or under its own when None; `native` [head] are its own learned sinks."""
    own = None if native is None else native.float().to(device)
    if normaliser is None:
        return Weighing(own)
    acting = normaliser.acting_heads(heads)
    acting = None if acting is None else acting.to(device)
    form: Any = quicker_form(normaliser)
    whole = normaliser if form is None else None
    pointwise: Any = normaliser if form is Pointwise else None
    logit = logit_of(normaliser, heads, device) if form is VirtualKey else None
    if acting is not None and not (logit is None and own is None):
        nothing = torch.full((heads,), -torch.inf, device=device)
        logit = torch.where(acting, nothing if logit is None else logit, nothing if own is None else own)
    return Weighing(logit, pointwise, whole, acting, heads)
