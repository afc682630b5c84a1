"""What a turn of a conversation adds to what the model has read: ids of the new tokens alone.

A chat template renders whole conversations, and one without end cannot be rendered anew each time. Everything it puts
behind an answer (its end, the user's turn, the start of the next answer) is read off a short conversation with a
character in the answer's place that no text uses:

    system | question | \ue000 <|im_end|> <|im_start|> user: ... <|im_end|> <|im_start|> assistant:
                               ╰──────────────────── what the turn adds ───────────────────────╯

So an answer ends as the template says, whether the model ended it, a limit or an interrupt. What a template puts at the
start alone, such as a system prompt of its own, comes once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from sinkscope.errors import SinkscopeError, first_line

STAND_IN = "\ue000"


@dataclass(frozen=True)
class Turns(ABC):
    """How turns become tokens.

    Attributes:
        tokenizer: of transformers.
        system: what the model is told before the first turn, or None.
    """

    tokenizer: Any
    system: str | None = None

    @abstractmethod
    def first(self, text: str) -> list[int]:
        """The ids that open a conversation."""

    @abstractmethod
    def later(self, text: str) -> list[int]:
        """The ids that come behind an answer, whose end token, if the model chose one, was not read."""

    @abstractmethod
    def ends(self) -> set[int]:
        """Tokens that end an answer."""


class PlainTurns(Turns):
    """Without a template: plain text, a line for each turn, that the model goes on with."""

    def first(self, text: str) -> list[int]:
        return encode(self.tokenizer, text if self.system is None else f"{self.system}\n{text}", special=True)

    def later(self, text: str) -> list[int]:
        return encode(self.tokenizer, f"\n{text}")

    def ends(self) -> set[int]:
        return set()


class TemplateTurns(Turns):
    """As the tokenizer's chat template renders them."""

    def first(self, text: str) -> list[int]:
        return encode(self.tokenizer, self._render([("user", text)]))

    def later(self, text: str) -> list[int]:
        rendered = self._render([("user", "?"), ("assistant", STAND_IN), ("user", text)])
        _, found, behind = rendered.partition(STAND_IN)
        if not found:
            raise SinkscopeError(
                "the chat template leaves out earlier answers, so a conversation cannot go on turn by turn; "
                "set tokenizer.chat_template to another one."
            )
        return encode(self.tokenizer, behind)

    def ends(self) -> set[int]:
        """The token the template puts behind an answer, if that is a special one."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {number for number, token in added if token.special} | set(self.tokenizer.all_special_ids)
        return {self.later("?")[0]} & special

    def _render(self, turns: list[tuple[str, str]]) -> str:
        system = [] if self.system is None else [("system", self.system)]
        messages = [{"role": role, "content": text} for role, text in system + turns]
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:
            raise SinkscopeError(
                f"the chat template cannot render this conversation: {first_line(error)}; leave out the system prompt "
                "or set tokenizer.chat_template to another one."
            ) from error


def turns_of(tokenizer: Any, system: str | None = None) -> Turns:
    """By the tokenizer's chat template, or as plain text where it has none.

    Raises:
        SinkscopeError: no tokenizer, or a template that cannot be followed.
    """
    check_tokenizer(tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        return PlainTurns(tokenizer, system)
    turns = TemplateTurns(tokenizer, system)
    turns.ends()  # one that cannot be followed says so before the first turn
    return turns


def encode(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    """The ids of a text, with the special tokens that the tokenizer adds by itself if `special`.

    Raises:
        SinkscopeError: no tokenizer, or a text without tokens.
    """
    check_tokenizer(tokenizer)
    try:
        ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    except Exception as error:
        raise SinkscopeError(f"the tokenizer cannot encode this text: {first_line(error)}.") from error
    if not text or not ids:
        raise SinkscopeError(f"the text {text!r} has no tokens; give one to go on from.")
    return ids


def check_tokenizer(tokenizer: Any) -> None:
    """Raise SinkscopeError without a tokenizer."""
    if not callable(tokenizer):
        raise SinkscopeError(f"text needs a tokenizer, got {tokenizer!r}; give the one that belongs to this model.")
