"""Where one has been: the settings that were shown, with their perplexities, and the way back and forth among them.

A visit holds a configuration and a few numbers, no map and no losses: whoever returns has the text read again.
"""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope.explorer.configuration import Configuration
from sinkscope.explorer.results import Loss

MOST = 100  # settings that are remembered


@dataclass(frozen=True)
class Visit:
    """A setting that was shown, and its perplexity; None where no token was scored."""

    configuration: Configuration
    loss: Loss | None

    def __str__(self) -> str:
        if self.loss is None:
            return self.configuration.name
        dense = "" if self.configuration.is_baseline else f", dense {self.loss.dense:.2f}"
        return f"{self.configuration.name}: perplexity {self.loss.changed:.2f}{dense}"


class History:
    """The settings that were shown.

    Attributes:
        visits: each of them once, those first that were first shown.
    """

    def __init__(self) -> None:
        self.visits: list[Visit] = []
        self._trail: list[Configuration] = []  # in the order shown, without what was undone
        self._place = -1  # in the trail, of what was shown last

    def note(self, configuration: Configuration, loss: Loss | None) -> None:
        """A setting is shown; after something was undone, what came after that is left out of the way forth."""
        places = [place for place, each in enumerate(self.visits) if each.configuration == configuration]
        if places:
            self.visits[places[0]] = Visit(configuration, loss)
        else:
            self.visits = [*self.visits[1 - MOST :], Visit(configuration, loss)]
        if self._place < 0 or self._trail[self._place] != configuration:
            self._trail = [*self._trail[: self._place + 1], configuration][-MOST:]
            self._place = len(self._trail) - 1

    def can_go_back(self, asked: Configuration) -> bool:
        return self._place > 0 or (self._place == 0 and self._trail[0] != asked)

    @property
    def can_go_forth(self) -> bool:
        return self._place + 1 < len(self._trail)

    def back(self, asked: Configuration) -> Configuration:
        """The setting before the one `asked` for last; that which is shown, where another one never was."""
        if self._trail[self._place] == asked:
            self._place -= 1
        return self._trail[self._place]

    def forth(self) -> Configuration:
        """The setting that was undone last."""
        self._place += 1
        return self._trail[self._place]
