"""What fits a stream of attention: probes, and normalisers."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from torch import nn

from sinkscope.attention.eviction import Eviction
from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import query_heads
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import Anatomy
from sinkscope.normalisers import Normaliser, VirtualKey
from sinkscope.normalisers.base import quicker_form
from sinkscope.probes import HiddenProbe, Probe
from sinkscope.scope.streams import reads_tokens


def fitting(probes: Iterable[Probe], anatomy: Anatomy) -> list[Probe]:
    """The probes that can look at a stream beside the main one: it may lack layers, or have keys of another text."""
    found = []
    for probe in probes:
        with suppress(SinkscopeError):
            check_fits(probe, anatomy)
            found.append(probe)
    return found


def check_fits(probe: Probe, anatomy: Anatomy) -> None:
    """Raise SinkscopeError for a probe that cannot look at a stream."""
    probe.check(anatomy.layers)
    if anatomy.crosses and (probe.one_text or isinstance(probe, HiddenProbe)):
        raise SinkscopeError(
            f"{probe!r} looks at tokens of one text, and in cross-attention queries and keys are of two; leave it out."
        )
    if probe.needs and not (anatomy.interface and not anatomy.crosses and reads_tokens(anatomy.base)):
        what = "its gate" if probe.needs == "gate" else "W_O"
        raise SinkscopeError(
            f"{probe!r} asks for {what} behind the heads of {type(anatomy.base).__name__}, which is found for models "
            "that read tokens through transformers' attention interface only; leave it out."
        )


def check_normaliser(
    normaliser: Any, model: nn.Module, anatomy: Anatomy, evictions: list[tuple[Eviction, ...]]
) -> None:
    """Raise SinkscopeError for a normaliser that cannot act on a model, or beside a policy."""
    if not isinstance(normaliser, Normaliser):
        raise SinkscopeError(
            f"{normaliser!r} is not a normaliser; give an instance such as sinkscope.Softmax1().",
            page="A policy, a normaliser or a probe of my own",
        )
    if not anatomy.interface:
        raise SinkscopeError(
            f"{type(model).__name__} does not use transformers' attention interface, so its normaliser cannot be "
            "replaced; it can only be measured."
        )
    heads = query_heads(model)
    normaliser.check_place(anatomy.numbers, heads)
    device = reading_device(model)
    normaliser.check_weights(heads, "cpu" if device.type == "meta" else device)
    shares = quicker_form(normaliser) is VirtualKey
    if not shares and any(eviction.values == "added" for each in evictions for eviction in each):
        raise SinkscopeError(
            f'values="added" takes keys out of a denominator, and the weights of {normaliser!r} are not shares of one; '
            "give a normaliser with a denominator, or other values."
        )
