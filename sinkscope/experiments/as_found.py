"""A model as an intervention found it: what the intervention leaves on it is taken off, and said by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import nn

from sinkscope.errors import SinkscopeError
from sinkscope.models.weights import weights_hash
from sinkscope.undo import Undo

Given = TypeVar("Given")


class AsFound:
    """A model before interventions, some of which may be classes of the user's own.

    Their weights are hashed before and after; that costs a second for some gigabytes, and nothing for our own.
    """

    def __init__(self, model: nn.Module, interventions: Iterable[Any]) -> None:
        self.model = model
        self._weights = weights_hash(model) if any(map(_is_foreign, interventions)) else ""

    def after(self, call: Callable[[], Given], intervention: Any) -> Given:
        """What a call of an intervention's gives, with the model's hooks and functions put back behind one not of ours.

        Raises:
            SinkscopeError: when there were others than before.
        """
        if not _is_foreign(intervention):
            return call()
        found = [(path, module, _hung(module)) for path, module in self.model.named_modules()]

        def put_back() -> None:
            for _, module, hung in found:
                _hang(module, hung)

        with Undo() as undo:
            undo.callback(put_back)
            given = call()
            for path, module, hung in found:
                if _hung(module) != hung:
                    raise SinkscopeError(
                        f"`{intervention.name}` left a hook, or another forward, on {path or type(module).__name__}, "
                        "where it would act on all that runs later; it was taken off, so put its removal on the stack "
                        "that `hooks` is given, as in undo.callback(handle.remove)."
                    )
            return given

    def check_weights(self, intervention: Any) -> None:
        """Raise SinkscopeError when an intervention has changed them; a copy to put back would take their memory."""
        if _is_foreign(intervention) and weights_hash(self.model) != self._weights:
            raise SinkscopeError(
                f"`{intervention.name}` changed the model's weights, so the model is another one now; load it again, "
                "and change what runs by a hook, or a copy of the model."
            )


def _is_foreign(intervention: Any) -> bool:
    return type(intervention).__module__.partition(".")[0] != __name__.partition(".")[0]


def _hung(module: nn.Module) -> dict[str, Any]:
    """The hooks on a module by their dictionaries, and a forward of the instance's own."""
    hooks = {name: dict(value) for name, value in vars(module).items() if "hooks" in name and isinstance(value, dict)}
    return hooks | {name: value for name, value in vars(module).items() if name == "forward"}


def _hang(module: nn.Module, hung: dict[str, Any]) -> None:
    """Have on a module what `_hung` gave, and nothing else."""
    vars(module).pop("forward", None)
    for name, value in hung.items():
        if name == "forward":
            module.forward = value
        elif (there := vars(module)[name]) != value:
            there.clear()
            there.update(value)
