"""Whatever ends an answer or a question, the conversation goes on behind what was shown."""

from __future__ import annotations

import pytest

from sinkscope import Conversation
from tests.support.talking import END, decoded, interrupted, reading, talker, tokenizer, wanting

SINKS, WINDOW = 4, 60


def follows(conversation, model, words, ids, before):
    """Whether the next turn comes behind `before`, the text that was shown, and the end of an answer."""
    del ids[:]
    hook = wanting(model, 52, END)
    assert list(conversation.ask("and?")) == ["the"]
    hook.remove()
    behind = "<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nthe"
    return words.decode(ids) == behind and conversation.cache.seen == before + len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 6])
@pytest.mark.parametrize("window", [WINDOW, 12])
def test_an_interrupt_keeps_what_was_shown(after, window):
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=window, max_new_tokens=30) as conversation:
        list(conversation.ask("the cat"))
        for _ in range(3):
            read, shown = len(ids), []
            hook = interrupted(model, after * (1 if window == WINDOW else 2))
            with pytest.raises(KeyboardInterrupt):
                for piece in conversation.ask("the"):
                    shown.append(piece)
            hook.remove()
            written = ids[len(ids) - conversation.answer.tokens :] if conversation.answer.tokens else []
            assert conversation.cache.seen >= len(ids) > 0 and not conversation.answer.is_ended
            assert "".join(shown).rstrip("\ufffd") == decoded(words, written).rstrip("\ufffd")
            if len(ids) > read:
                assert follows(conversation, model, words, ids, conversation.cache.seen)


def test_leaving_an_answer_keeps_what_was_shown():
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=WINDOW) as conversation:
        hook = wanting(model, 52, 60, 52, 60)
        pieces = conversation.ask("the cat")
        assert [next(pieces), next(pieces)] == ["the", " cat"]
        hook.remove()
        assert words.decode(ids).endswith("<|im_start|>assistant\nthe cat") and conversation.cache.seen == len(ids)
        assert follows(conversation, model, words, ids, conversation.cache.seen)
        assert list(pieces) == []  # the answer that was left is over
        other = conversation.ask("never started")
        assert follows(conversation, model, words, ids, conversation.cache.seen)
        assert list(other) == []


def test_an_interrupted_question_was_not_asked():
    model, words = talker(), tokenizer()
    ids = reading(model)
    with Conversation(model, words, sinks=SINKS, window=WINDOW, max_new_tokens=3) as conversation:
        for turn in range(2):
            seen = conversation.cache.seen
            hook = interrupted(model, 0)
            with pytest.raises(KeyboardInterrupt):
                list(conversation.ask("lost"))
            hook.remove()
            assert conversation.cache.seen == seen
            list(conversation.ask("the cat"))
            assert words.decode(ids).count("<|im_start|>user") == turn + 1 and "lost" not in words.decode(ids)


def test_a_question_interrupted_half_way_is_read_to_its_end():
    model, words = talker(), tokenizer()
    with Conversation(model, words, sinks=SINKS, window=WINDOW, max_new_tokens=3) as conversation:
        list(conversation.ask("hi"))
        question = "the cat sat on the mat. " * 20
        turn, question_ids = conversation._turns.later("hi"), conversation._turns.later(question)
        before = conversation.cache.seen
        hook = interrupted(model, 1)  # behind the first block
        with pytest.raises(KeyboardInterrupt):
            list(conversation.ask(question))
        hook.remove()
        asked = question_ids if conversation.cache.seen > before else []
        list(conversation.ask("hi"))
        assert conversation.cache.seen == before + len(asked) + len(turn) + 3
