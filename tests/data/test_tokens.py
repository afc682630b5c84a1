"""Special tokens of any tokenizer, and the texts of its tokens, against the text they were made of."""

from __future__ import annotations

import pytest

from sinkscope import SinkscopeError, measure, read_tokens, sequences
from sinkscope.experiments.intervention import line_break_token
from sinkscope.texts import read_stream
from sinkscope.tokens import TokenTexts, decoder, encode
from tests.support import tokenizers as make
from tests.support.zoo import build


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [
        (make.nucleotides(), "ACGT", [0, 2, 3, 4, 5, 1]),
        (make.two_in_front(), "ACGT", [1, 0, 2, 3, 4, 5, 1]),
        (make.letters_of_another_script(), "latin letters that it drops, " * 20 + "αβγ", [0, 2, 3, 4]),
        (make.plain_bytes(), "漢", [3 + byte for byte in "漢".encode()] + [1]),
        (make.nucleotides().backend_tokenizer, "AC", [0, 2, 3, 1]),
        (make.Characters(), "ab", [97, 98]),
    ],
)
def test_special_tokens_are_found_whatever_the_alphabet(tokenizer, text, expected):
    assert read_tokens(tokenizer, text=text).tolist() == [expected]


def test_special_tokens_behind_a_text_are_left_out_where_it_is_cut():
    assert read_tokens(make.two_in_front(), text="ACGT" * 200, limit=5).tolist() == [[1, 0, 2, 3, 4]]


def test_a_text_without_a_token_is_refused_though_the_tokenizer_adds_bos():
    with pytest.raises(SinkscopeError, match="makes no token of this text"):
        read_tokens(make.letters_of_another_script(), text="latin")


def test_a_text_that_its_tokenizer_encodes_otherwise_with_special_tokens_is_refused():
    def moving(text, add_special_tokens=True):
        return [1, *reversed(text.encode())] if add_special_tokens else list(text.encode())

    with pytest.raises(SinkscopeError, match=r"in another way when it adds its special tokens.*bos=False"):
        read_tokens(moving, text="ab")
    assert read_tokens(moving, text="ab", bos=False).tolist() == [[97, 98]]


def test_all_tokens_in_front_are_put_before_every_sequence(tmp_path):
    (tmp_path / "genome.txt").write_text("ACGT" * 10)
    stream, front = read_stream(make.two_in_front(), tmp_path / "genome.txt", 8)
    assert (stream.tolist(), front) == ([2, 3, 4, 5, 2, 3, 4, 5], (1, 0))
    assert sequences(stream, 6, bos=front).tolist() == [[1, 0, 2, 3, 4, 5]] * 2


JOINED = {
    "byte level": (make.byte_level("<s> $A </s>"), "<s>{}</s>"),
    "SentencePiece": (make.sentencepiece(), "<s> {}"),  # which puts the blank there
    "bytes": (make.plain_bytes(), "{}</s>"),
    "a function": (make.Characters(), "{}"),
    "of tokenizers": (make.byte_level("<s> $A").backend_tokenizer, "<s>{}"),
}


@pytest.mark.parametrize("kind", JOINED)
def test_the_texts_of_tokens_join_to_the_text(kind):
    tokenizer, frame = JOINED[kind]
    ids = read_tokens(tokenizer, text=make.TOKEN_TEXT)[0].tolist()
    texts = TokenTexts(tokenizer)(ids)
    assert len(texts) == len(ids) and "".join(texts) == frame.format(make.TOKEN_TEXT)


def test_sentencepiece_keeps_its_blanks():
    words = make.sentencepiece()
    ids = read_tokens(words, text="the cat  in the cat")
    expected = ["<s>", " the", " cat", " ", " in", " the", " cat"]
    assert TokenTexts(words)(ids[0]) == expected
    assert measure(build("llama"), ids.clamp(max=127), tokenizer=words).token_text.values[0, 0] == "<s>"
    assert TokenTexts(words).of(words.convert_tokens_to_ids("▁")) == " "


def test_word_piece_has_blanks_between_words_only():
    words = make.word_piece()
    ids = read_tokens(words, text="the cat sat. 漢字")[0]
    assert TokenTexts(words)(ids) == ["[CLS]", " the", " cat", " sat", ".", "漢", "字", "[SEP]"]


def test_blanks_behind_words_stand_before_the_next_word():
    words = make.blank_behind()
    ids = read_tokens(words, text="the catty sat in")[0].tolist()
    texts = TokenTexts(words)(ids)
    assert "".join(texts) == "the catty sat in" and {" sat", " in"} <= set(texts)


def test_letters_that_decode_would_set_apart_are_not():
    ids = read_tokens(make.nucleotides(), text="ACGT")[0]
    assert TokenTexts(make.nucleotides())(ids) == ["<s>", "A", "C", "G", "T", "</s>"]


def test_bytes_that_are_no_character_are_marked_and_leave_their_neighbours_alone():
    words = make.sentencepiece()
    _, lead, _, last = encode(words, "漢")
    _, letter, *character = encode(words, "aé")
    texts = TokenTexts(words)([lead, letter, last, letter, *character, lead, 1, last])
    assert texts == ["\ufffd", "a", "\ufffd", "a", "\ufffd", "\ufffd", "\ufffd", "</s>", "\ufffd"]
    bytes_alone = make.byte_level()
    lead, *_ = encode(bytes_alone, "語")
    assert TokenTexts(bytes_alone)([lead, *encode(bytes_alone, "é")]) == ["\ufffd", "é"]


def test_a_token_that_its_tokenizer_does_not_know_is_named():
    class Words:
        def decode(self, ids):
            return "".join([" a", " b"][token] for token in ids)

    assert TokenTexts(Words())([0, 1]) == [" a", " b"]
    with pytest.raises(SinkscopeError, match="cannot decode token 2"):
        TokenTexts(Words())([0, 2])
    with pytest.raises(SinkscopeError, match="a function has no decode"):
        decoder(lambda text: [1])


def test_a_line_break_is_a_token_that_says_so():
    assert line_break_token(make.byte_level()) == make.byte_level().convert_tokens_to_ids("Ċ")
    assert line_break_token(make.sentencepiece()) == make.sentencepiece().convert_tokens_to_ids("<0x0A>")
    for words in (make.word_piece(), make.letters_of_another_script()):
        with pytest.raises(SinkscopeError, match="no token that is a line break"):
            line_break_token(words)
    with pytest.raises(SinkscopeError, match="cannot encode this text"):
        line_break_token(make.nucleotides())


def test_a_long_text_is_encoded_once_and_anew_once_its_tokenizer_is_another(monkeypatch):
    from sinkscope import tokens

    monkeypatch.setattr(tokens, "LONG", 8)
    monkeypatch.setattr(tokens, "_LAST", {})
    tokenizer, calls = make.nucleotides(), []
    plain = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, *a, **k: calls.append(a) or plain(self, *a, **k))
    first = encode(tokenizer, "ACGTACGT")
    assert encode(tokenizer, "ACGTACGT") == first and len(calls) == 1
    assert encode(tokenizer, "ACGTACGT", special=True) == [0, *first, 1] and len(calls) == 2
    assert encode(tokenizer, "ACGTACGA") == [*first[:-1], first[0]] and len(calls) == 3
    tokenizer.add_tokens(["ACG"])
    assert encode(tokenizer, "ACGTACGA") != [*first[:-1], first[0]] and len(calls) == 4
