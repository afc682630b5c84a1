"""How the turns of a conversation become tokens: plain lines, a chat template, or a method of the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.loading import has_template_method
from sinkscope.tokens import encode, is_tokenizer, no_tokenizer

STAND_IN = "\ue000"
TWO = ("?", "!")  # which end in different tokens


@dataclass(frozen=True)
class Turns:
    """How turns become tokens without a template: a line of plain text for each, that the model goes on with."""

    tokenizer: Any
    system: str | None  # what the model is told before the first turn

    def first(self, text: str) -> list[int]:
        """The ids that open a conversation."""
        return encoded(self.tokenizer, text if self.system is None else f"{self.system}\n{text}", special=True)

    def later(self, text: str) -> list[int]:
        """The ids that come behind an answer, whose end token, if the model chose one, was not read."""
        return encoded(self.tokenizer, f"\n{text}")

    def ends(self) -> set[int]:
        """Tokens that end an answer."""
        return set()


class TemplateTurns(Turns):
    """How they do as the tokenizer's chat template renders them."""

    remedy = "set tokenizer.chat_template to another one"

    def first(self, text: str) -> list[int]:
        return encoded(self.tokenizer, self._render([("user", text)]))

    def later(self, text: str) -> list[int]:
        rendered = self._render([("user", "?"), ("assistant", STAND_IN), ("user", text)])
        _, found, behind = rendered.partition(STAND_IN)
        if not found:
            raise self._leaves_out("earlier answers")
        return encoded(self.tokenizer, behind)

    def ends(self) -> set[int]:
        """The token the template puts behind an answer, if that is a special one."""
        self._check_template()
        return {self.later("?")[0]} & self._special()

    def _special(self) -> set[int]:
        added = self.tokenizer.added_tokens_decoder.items()
        return {number for number, token in added if token.special} | set(self.tokenizer.all_special_ids)

    def _check_template(self) -> None:
        """Raise SinkscopeError for a template that leaves out what is said."""
        if STAND_IN not in self._render([("user", STAND_IN)]):
            raise self._leaves_out("what is said")

    def _render(self, turns: list[tuple[str, str]], **form: Any) -> Any:
        system = [] if self.system is None else [("system", self.system)]
        messages = [{"role": role, "content": text} for role, text in system + turns]
        form = form or {"tokenize": False}
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, **form)
        except Exception as error:
            advice = self.remedy if self.system is None else f"leave out the system prompt, or {self.remedy}"
            raise SinkscopeError(
                f"the chat template cannot render this conversation: {first_line(error).rstrip('.')}; {advice}."
            ) from error

    def _leaves_out(self, what: str) -> SinkscopeError:
        return SinkscopeError(
            f"the chat template leaves out {what}, so a conversation cannot go on turn by turn; {self.remedy}."
        )


class MethodTurns(TemplateTurns):
    """How they do where a method of the tokenizer makes ids of them, since its special tokens have no text."""

    remedy = "give another tokenizer of this model"

    def first(self, text: str) -> list[int]:
        return list(self._render([("user", text)], tokenize=True, return_dict=False))

    def later(self, text: str) -> list[int]:
        one, other = (
            self._render([("user", "?"), ("assistant", answer), ("user", text)], tokenize=True, return_dict=False)
            for answer in TWO
        )
        if one == other:
            raise self._leaves_out("earlier answers")
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
        return [token for token, _ in alike][::-1]

    def _check_template(self) -> None:
        one, other = map(self.first, TWO)
        if one == other:
            raise self._leaves_out("what is said")

    def _special(self) -> set[int]:
        return set(self.tokenizer.all_special_ids)


def turns_of(tokenizer: Any, system: str | None) -> Turns:
    """How the turns of a conversation become tokens.

    Raises:
        SinkscopeError: no tokenizer, or several chat templates and none to take.
    """
    if not is_tokenizer(tokenizer):
        raise no_tokenizer(tokenizer)
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping) and "default" not in template:
        raise SinkscopeError(
            f"the tokenizer has the chat templates {', '.join(map(str, template))}, and none is the default; choose "
            f"one: tokenizer.chat_template = tokenizer.chat_template[{next(iter(template), 'name')!r}]."
        )
    if template:
        return TemplateTurns(tokenizer, system)
    return (MethodTurns if has_template_method(tokenizer) else Turns)(tokenizer, system)


def encoded(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The ids of a text, at least one, with the special tokens that the tokenizer adds by itself if `special`."""
    ids = encode(tokenizer, text, special)
    if not text or not ids:
        raise SinkscopeError(f"the text {text!r} has no tokens; give one to go on from.")
    return ids
