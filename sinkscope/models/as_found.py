"""A model as code of the user's own found it: what that code leaves on it is taken off, and said by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from sinkscope.attention.placement import is_built_in
from sinkscope.errors import SinkscopeError
from sinkscope.hf.configuration import configuration
from sinkscope.models.weights import weights_hash
from sinkscope.undo import Undo

Given = TypeVar("Given")


class AsFound:
    """A model before code runs some of which, by these classes and functions, may be the user's own.

    Its weights are hashed before and after that; it costs a second for some gigabytes, and nothing for our own code.
    """

    def __init__(self, model: nn.Module, *code: Any) -> None:
        self.model = model
        self._before = None if all(map(is_built_in, code)) else self._identity()

    def after(self, call: Callable[[], Given], code: Any, name: str) -> Given:
        """What a call gives, with the model's hooks, modules and settings put back behind it.

        Raises:
            SinkscopeError: when there were others than before, unless the code is ours.
        """
        if is_built_in(code):
            return call()
        with self.put_back(name):
            return call()

    @contextmanager
    def put_back(self, name: str) -> Iterator[None]:
        """Put back what hangs on the model at the end; SinkscopeError, with the name of who did it, if it changed."""
        found = [("all modules", nn.modules.module, _state(nn.modules.module))]
        found += [(path or type(each).__name__, each, _state(each)) for path, each in self.model.named_modules()]

        def as_before() -> None:
            for _, owner, state in found:
                _restore(owner, state)

        with Undo() as undo:
            undo.callback(as_before)
            yield
            for path, owner, state in found:
                if changed := _changed(state, _state(owner)):
                    what = "a hook" if "hooks" in changed else f"another `{changed.replace('_modules', 'module')}`"
                    raise SinkscopeError(
                        f"{name} left {what} on {path}, where it would act on all that runs later; it was taken "
                        "off, so let it put its removal on the stack that the `hooks` of an intervention are given, as "
                        "in undo.callback(handle.remove), or take it off itself."
                    )

    def check_same(self, *names: str) -> None:
        """Raise SinkscopeError when weights or configuration changed; a copy to put back would take their memory."""
        now = None if self._before is None else self._identity()
        if now is not None and self._before is not None and now != self._before:
            what = "weights" if now[0] != self._before[0] else "configuration"
            raise SinkscopeError(
                f"{' or '.join(names)} changed the model's {what}, so the model is another one now; load it again, and "
                "change what runs by the hooks of an intervention, or a copy of the model."
            )

    def _identity(self) -> tuple[str, dict[str, Any]]:
        return weights_hash(self.model), configuration(self.model)


def _state(owner: Any) -> dict[str, Any]:
    """The hooks and parts of a module by their dictionaries, what it calls and its settings, by name.

    Whole numbers and tensors are left out, in which modules note what they read.
    """
    state: dict[str, Any] = {}
    for name, value in vars(owner).items():
        if isinstance(value, dict) and ("hooks" in name or name == "_modules"):
            state[name] = dict(value)
        elif isinstance(owner, nn.Module) and (callable(value) or isinstance(value, (bool, float, str))):
            state[name] = value
    return state


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first name under which there is something else than before, or a forward that was not there; or nothing."""
    return next((name for name in {**before, "forward": None} if before.get(name) != now.get(name)), "")


def _restore(owner: Any, state: dict[str, Any]) -> None:
    """Have on a module what `_state` gave."""
    if "forward" not in state:
        vars(owner).pop("forward", None)
    for name, value in state.items():
        if not isinstance(value, dict):
            vars(owner)[name] = value
        elif (there := vars(owner)[name]) != value:
            there.clear()
            there.update(value)
