"""Massive activations set to zero, or to their mean (Sun et al. 2024, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.arguments import finite_number
from sinkscope.core.anatomy import Part, find_anatomy
from sinkscope.core.scope import attached
from sinkscope.errors import SinkscopeError
from sinkscope.interventions.intervention import Arm, Intervention, Setting, check_among, check_numbers

MODES = ("zero", "mean")
MAGNITUDE, RATIO = 100.0, 1000.0  # Sun et al. (2024)


@dataclass(frozen=True)
class Site:
    """One dimension of a layer's output that is set.

    Attributes:
        watched: where this dimension is massive,
        changed: this one is set;
        mean: of what stood there, over all those places in all texts.
    """

    watched: int
    changed: int
    mean: float


@dataclass(frozen=True)
class SetMassive(Intervention):
    """Set massive activations behind chosen layers to zero, or to their mean.

    An activation is massive where its magnitude is above `magnitude` and at least `ratio` times the median magnitude of
    its layer's hidden state (Sun et al. 2024). The texts as they are tell in which dimensions there are any; these are
    set, in the layer's output, wherever they are massive while it runs. The mean is that of a dimension over all places
    where it was massive, in all texts: a constant. The control does the same to as many other dimensions of the same
    tokens, drawn at random: it tells the tokens from the dimensions, not the dimensions from their size.

    Args:
        layers: behind which; the first layer after which there are any when None.
        mode: "zero" or "mean".
        magnitude, ratio: what is massive.
    """

    layers: Sequence[int] | None = None
    mode: str = "zero"
    magnitude: float = MAGNITUDE
    ratio: float = RATIO
    at_random: bool = False
    sites: Mapping[int, Sequence[Site]] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SinkscopeError(f"mode={self.mode!r} is unknown; give one of {', '.join(MODES)}.")
        finite_number(self.magnitude, "magnitude", 0)
        finite_number(self.ratio, "ratio", 0)
        check_numbers("layers", self.layers)

    @property
    def name(self) -> str:
        what = "random" if self.at_random else "massive"
        own = (self.magnitude, self.ratio) != (MAGNITUDE, RATIO)
        above = f" above {self.magnitude:g} and {self.ratio:g} medians" if own else ""
        numbers = " ".join(map(str, self.layers or ()))
        where = "" if self.layers is None else f" behind layer{'s' * (len(self.layers) > 1)} {numbers}"
        return f"{what} dimensions{above} to {self.mode}{where}"

    def control(self) -> Intervention | None:
        return None if self.at_random else replace(self, at_random=True, sites=None)

    def check(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> None:
        anatomy = find_anatomy(model)
        check_among(self.name, "layer", self.layers, anatomy.numbers)
        if any(part.layer is None for part in anatomy.parts):
            raise SinkscopeError(
                f"{type(model).__name__} does not keep its layers in a list, so what they hand on cannot be changed."
            )

    def prepare(self, model: nn.Module, texts: Sequence[Tensor], setting: Setting) -> Intervention:
        found = self._found(model, texts)
        layers = list(found)[:1] if self.layers is None else self.layers
        missing = [layer for layer in layers if layer not in found]
        if missing or not layers:
            where = f"behind layer {missing[0]}" if missing else "in this model"
            raise SinkscopeError(
                f"there is no activation above {self.magnitude:g} and {self.ratio:g} times the median {where}; give a "
                "lower magnitude or ratio, or other layers."
            )
        return replace(self, sites={layer: self._sites(found[layer], setting) for layer in layers})

    def arm(self, text: Tensor, number: int, setting: Setting) -> Arm:
        def hang(model: nn.Module, undo: ExitStack) -> None:
            for part in find_anatomy(model).parts:
                if sites := (self.sites or {}).get(part.number):
                    _hang(part, lambda output, sites=sites: self._changed(output, sites), undo)

        return Arm.of(text, hang=hang)

    def _massive(self, hidden: Tensor) -> Tensor:
        magnitude = hidden.abs()
        return (magnitude > self.magnitude) & (magnitude >= self.ratio * magnitude.median())

    def _changed(self, hidden: Tensor, sites: Sequence[Site]) -> Tensor:
        massive, changed = self._massive(hidden), hidden.clone()
        for site in sites:
            value = site.mean if self.mode == "mean" else 0.0
            changed[..., site.changed] = hidden[..., site.changed].masked_fill(massive[..., site.watched], value)
        return changed

    def _sites(self, means: Mapping[int, Tensor], setting: Setting) -> list[Site]:
        """What to set behind a layer, from the mean hidden state [dim] where each massive dimension is massive."""
        watched = sorted(means)
        size = len(means[watched[0]])
        others = [dimension for dimension in range(size) if dimension not in means]
        if self.at_random and len(others) < len(watched):
            raise SinkscopeError(
                f"{len(watched)} of {size} dimensions are massive, which leaves too few for a control; give a higher "
                "magnitude or ratio."
            )
        drawn = setting.random(size).choice(others, len(watched), replace=False) if self.at_random else watched
        return [
            Site(dimension, int(changed), float(means[dimension][int(changed)]))
            for dimension, changed in zip(watched, drawn, strict=True)
        ]

    def _found(self, model: nn.Module, texts: Sequence[Tensor]) -> dict[int, dict[int, Tensor]]:
        """By layer and massive dimension, in order: the mean hidden state [dim] where it is massive."""
        sums: dict[int, dict[int, tuple[Tensor, int]]] = {}

        def note(layer: int, hidden: Tensor) -> None:
            massive = self._massive(hidden)
            for dimension in massive.flatten(0, -2).any(0).nonzero().flatten().tolist():
                states = hidden[massive[..., dimension]].double()
                total, count = sums.setdefault(layer, {}).get(dimension, (torch.zeros_like(states[0]), 0))
                sums[layer][dimension] = total + states.sum(0), count + len(states)

        anatomy, device = find_anatomy(model), next(model.parameters()).device
        with attached(model), ExitStack() as undo, torch.no_grad():  # inside a scope, which refuses NaN
            for part in anatomy.parts:
                _hang(part, lambda hidden, layer=part.number: note(layer, hidden), undo)
            for text in texts:
                anatomy.base(input_ids=text[None].to(device))
        return {
            layer: {dimension: total / count for dimension, (total, count) in sorted(dimensions.items())}
            for layer, dimensions in sorted(sums.items())
        }


def _hang(part: Part, act: Any, undo: ExitStack) -> None:
    """Let `act` see, or replace, the hidden states [batch, token, dim] that a layer hands on."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        many = isinstance(output, tuple)
        changed = act(output[0] if many else output)
        return changed if changed is None or not many else (changed, *output[1:])

    assert part.layer is not None
    undo.callback(part.layer.register_forward_hook(hook).remove)
