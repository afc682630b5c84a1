"""Tokenizers of many kinds, of transformers and of tokenizers, each made in a moment."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

LINES = [
    "the cat sat on the mat and the dog ran away .",
    "in the beginning was the word",
    "漢字かな交じり文",
    "🙂é",
] * 5
TOKEN_TEXT = "the cat  sat. in the house 漢字🙂 é\n\n x"


def nucleotides() -> PreTrainedTokenizerFast:
    """A, C, G and T and nothing else: any other letter is an error."""
    return _wrapped(_letters({"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5}, "<s> $A </s>"))


def letters_of_another_script() -> PreTrainedTokenizerFast:
    """Greek letters; any other is dropped."""
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: 2 + number for number, letter in enumerate("αβγδεζηθ")}
    made = _letters(vocabulary, "<s> $A")
    made.normalizer = normalizers.Replace(Regex("[^α-θ]"), "")
    return _wrapped(made)


def two_in_front() -> PreTrainedTokenizerFast:
    """Two special tokens in front of a text and one behind it."""
    return _wrapped(_letters({"<s>": 0, "</s>": 1, "A": 2, "C": 3, "G": 4, "T": 5}, "</s> <s> $A </s>"))


def byte_level(single: str = "$A") -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's and Llama 3's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    return _wrapped(_framed(made, single))


def sentencepiece(single: str = "<s> $A") -> PreTrainedTokenizerFast:
    """SentencePiece with a blank in front of every text and bytes for unknown characters, as Llama 2's."""
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefghinorstuvwxyz.,"]:
        vocabulary[piece] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("▁", "in"), ("c", "a"), ("ca", "t"), ("▁", "cat")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(_framed(made, single))


def word_piece() -> PreTrainedTokenizerFast:
    """WordPiece between [CLS] and [SEP], as BERT's; it splits off punctuation and Chinese characters."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    special = ["[CLS]", "[SEP]", "[UNK]"]
    made.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        clean_up_tokenization_spaces=True,
    )


def blank_behind() -> PreTrainedTokenizerFast:
    """BPE that marks the end of a word rather than its beginning, as GPT-1's and CLIP's."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder(suffix="</w>")
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=100, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return _wrapped(made)


def plain_bytes() -> ByT5Tokenizer:
    """A token for each byte, and one behind every text."""
    return ByT5Tokenizer()


class Characters:
    """A function of a text, and what it makes of one."""

    def __call__(self, text):
        return [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def _letters(vocabulary: dict[str, int], single: str) -> Tokenizer:
    made = Tokenizer(models.WordLevel(vocabulary))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return _framed(made, single)


def _framed(made: Tokenizer, single: str) -> Tokenizer:
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return made


def _wrapped(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
