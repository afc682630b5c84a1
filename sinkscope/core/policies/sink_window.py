"""The first tokens and the last ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from sinkscope.core.policies.base import POSITIONS, VALUES, Policy, check_bias, check_choice, check_count

WHAT_IS_LEFT = {"kept": "", "zeroed": "values zeroed", "mean": "mean values", "added": "values only"}


@dataclass(frozen=True, repr=False)
class SinkWindow(Policy):
    """Keep the first `sinks` tokens and the last `window` (StreamingLLM; Xiao et al. 2023, section 3.2).

    Args:
        sinks: first tokens kept.
        window: last tokens kept.
        positions: "cache" moves the sinks along, so that no distance exceeds sinks + window; "original" leaves them at
            their place in the text, ever farther away.
        values: what is left of the sinks' values once something was evicted. "kept" is StreamingLLM; with "zeroed" or
            "mean" they are phantoms that only fill the denominator; with "added" only the values are there.
        bias: added to the logits of the sinks once something was evicted, as in `Dose`.
    """

    sinks: int = 4  # type: ignore[misc]
    window: int = 1020  # type: ignore[misc]
    positions: str = "cache"  # type: ignore[misc]
    values: str = field(default="kept", kw_only=True)  # type: ignore[misc]
    bias: float = field(default=0.0, kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_count(self, "sinks", 0)
        check_count(self, "window", 1)
        check_choice(self, "positions", POSITIONS)
        check_choice(self, "values", VALUES)
        check_bias(self)

    @property
    def description(self) -> str:
        mode = "" if self.positions == "cache" else f"{self.positions} positions"
        dose = f"dose {self.bias:+g}" if self.bias else ""
        return ", ".join(filter(None, [f"sinks {self.sinks}+{self.window}", mode, WHAT_IS_LEFT[self.values], dose]))
