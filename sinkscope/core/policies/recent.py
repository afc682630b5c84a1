"""The last tokens taken away."""

from __future__ import annotations

from dataclasses import dataclass, field

from sinkscope.core.policies.base import Policy, check_count
from sinkscope.errors import SinkscopeError


@dataclass(frozen=True, repr=False)
class EvictRecent(Policy):
    """Take the last `recent` tokens before it away from every query; it sees itself and all older ones.

    The control for evicting as many sinks: those tokens are of use.

    Args:
        recent: how many tokens.
        start: the first query that does not see them; the first that has another one left when None.
    """

    recent: int  # type: ignore[misc]
    start: int | None = field(default=None, kw_only=True)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_count(self, "recent", 1)
        if self.start is None:
            object.__setattr__(self, "start", self.recent + 1)
        elif not isinstance(self.start, int) or self.start <= self.recent:
            raise SinkscopeError(
                f"query {self.start!r} has no token left but itself when the last {self.recent} are evicted; "
                f"give start > {self.recent}."
            )

    @property
    def description(self) -> str:
        return f"evict the last {self.recent}"
