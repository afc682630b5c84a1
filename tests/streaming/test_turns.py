"""Turns are read as the tokenizer's own template has them, or refused for the true reason."""

from __future__ import annotations

import pytest

from sinkscope import Conversation, SinkscopeError
from sinkscope.streaming.turns import turns_of
from tests.support.talking import BOS, END, START, TEMPLATE, reading, talker, tokenizer, wanting

WITHOUT_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role.') }}{% endif %}" + TEMPLATE
)
DEAF = "{{ '<|im_start|>assistant\n' }}"
FORGETFUL = "{{ '<|im_start|>user\n' + messages[-1]['content'] + '<|im_end|>\n' }}"


class MadeByMethod(type(tokenizer())):
    """A tokenizer whose chat template is a method that makes ids, as those of mistral-common."""

    def apply_chat_template(self, messages, tokenize, return_dict, add_generation_prompt):
        assert tokenize and not return_dict and add_generation_prompt
        ids = [BOS]
        for message in messages:
            role = {"user": [START], "assistant": [], "system": [START, START]}[message["role"]]
            ids += [*role, *self(message["content"], add_special_tokens=False).input_ids, END]
        return ids


def by_method():
    words = tokenizer(None)
    return MadeByMethod(tokenizer_object=words.backend_tokenizer, bos_token="<s>", eos_token="<|im_end|>")


@pytest.mark.parametrize("system", [None, "Be brief"])
def test_a_chat_template_that_is_a_method_is_followed_token_by_token(system):
    model, words = talker(), by_method()
    ids = reading(model)
    messages = [] if system is None else [{"role": "system", "content": system}]
    with Conversation(model, words, window=400, system=system, max_new_tokens=2) as conversation:
        assert conversation.has_template
        for question in ("the cat", "ran away"):
            hook = wanting(model, 52, END)
            answer = "".join(conversation.ask(question))
            hook.remove()
            assert answer == "the" and conversation.answer.is_ended
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            told = words.apply_chat_template(messages, tokenize=True, return_dict=False, add_generation_prompt=True)
            assert [*ids, END] == told


def test_of_several_templates_the_default_is_followed():
    words = tokenizer()
    words.chat_template = {"default": TEMPLATE, "tool_use": DEAF}
    assert turns_of(words, None).first("hi") == turns_of(tokenizer(), None).first("hi")


def test_several_templates_without_a_default_are_named():
    words = tokenizer()
    words.chat_template = {"rag": TEMPLATE, "tool_use": TEMPLATE}
    with pytest.raises(SinkscopeError, match=r"chat templates rag, tool_use, .* tokenizer.chat_template\['rag'\]"):
        Conversation(talker(), words)


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (WITHOUT_SYSTEM, "Be brief", r"no system role; leave out the system prompt, or set tokenizer.chat_template"),
        ("{{ raise_exception('no chat.') }}", None, r"no chat; set tokenizer.chat_template to another one"),
        (DEAF, None, "leaves out what is said"),
        (FORGETFUL, None, "leaves out earlier answers"),
    ],
)
def test_a_template_that_cannot_be_followed_says_why(template, system, message):
    with pytest.raises(SinkscopeError, match=message):
        Conversation(talker(), tokenizer(template), system=system)
    Conversation(talker(), tokenizer(WITHOUT_SYSTEM), window=60).close()


@pytest.mark.parametrize("what", ["turns", "answers"])
def test_a_method_that_leaves_something_out_is_refused(what, monkeypatch):
    words, told = by_method(), MadeByMethod.apply_chat_template
    kept = {"turns": "assistant", "answers": "user"}[what]

    def deaf(self, messages, **form):
        return told(self, [message for message in messages if message["role"] == kept], **form)

    monkeypatch.setattr(MadeByMethod, "apply_chat_template", deaf)
    with pytest.raises(SinkscopeError, match="leaves out what is said" if what == "turns" else "earlier answers"):
        Conversation(talker(), words)


def test_a_bare_tokenizer_of_tokenizers_talks_in_lines():
    model, words = talker(), tokenizer(None).backend_tokenizer
    ids = reading(model)
    with Conversation(model, words, window=400, max_new_tokens=1) as conversation:
        hook = wanting(model, 52)
        assert list(conversation.ask("the cat")) == ["the"]
        hook.remove()
    assert ids == [*words.encode("the cat").ids, 52]
