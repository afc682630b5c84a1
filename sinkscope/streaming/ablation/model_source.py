"""A loaded model, or the place where every process that needs it loads it from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from sinkscope.data import load


@dataclass(frozen=True)
class ModelSource:
    """What travels to a worker in place of a model.

    Attributes:
        given: a loaded model, which travels with its weights, or what `sinkscope.load` takes, which travels alone.
    """

    given: nn.Module | str | None

    @classmethod
    def of(cls, model: Any) -> ModelSource:
        """The source of a model; a path is made absolute, as workers may stand in another folder."""
        if not isinstance(model, (str, os.PathLike)):
            return cls(model)
        path = Path(model).expanduser()
        return cls(str(path.resolve()) if path.exists() else os.fspath(model))

    def open(self) -> nn.Module:
        """The model; one is held per process.

        Raises:
            SinkscopeError: there is none, or it cannot be loaded.
        """
        return self.given if isinstance(self.given, nn.Module) else _held(self.given)[0]

    def tokenizer(self) -> Any:
        """Its tokenizer; None where it is not to be found."""
        return load(self.given)[1] if isinstance(self.given, nn.Module) else _held(self.given)[1]

    def forget(self) -> None:
        """Hold no model in this process any longer."""
        _held.cache_clear()


@lru_cache(maxsize=1)
def _held(place: str | None) -> tuple[Any, Any]:
    return load(place)
