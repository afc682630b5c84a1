"""A tiny model that talks: a tokenizer of bytes and a few words, a chat template with a system prompt of its own."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.zoo import VOCABULARY, build

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
PAD, BOS, EOS, START, END = range(5)
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDE.,!?\n"


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Byte-level, of the zoo's vocabulary: a space, letters, the bytes of ü, 語 and 🙂, and some pairs of them."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = LETTERS + "ü語🙂"
    alphabet = sorted({unit for piece, _ in byte_level.pre_tokenize_str(text) for unit in piece})
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = byte_level, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(name, special=True) for name in SPECIAL],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    lines = ["system user assistant Be brief", "the cat sat on the mat and then the dog came and the cat ran away"]
    made.train_from_iterator(lines * 3, trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    wrapped.chat_template = template
    return wrapped


def without_eos():
    """A tokenizer that ends no text, so that a model without an end token writes to the limit."""
    words = tokenizer(None)
    words.eos_token = None
    return words


def decoded(words, ids):
    """The text of ids, as it is shown."""
    return words.decode(ids, skip_special_tokens=True)


def talker(eos=None):
    """The zoo's llama, which ends texts with `eos`."""
    model = build("llama")
    model.generation_config.eos_token_id = eos
    return model


def wanting(model, *tokens):
    """Let a model write `tokens`, one behind each forward pass, and then its own; gives a hook to remove."""
    waiting = list(tokens)

    def want(_module, _args, output):
        if waiting:
            output.logits[:, -1, waiting.pop(0)] = 1e4

    return model.register_forward_hook(want)


def reading(model):
    """The ids that a model reads from now on, of the forward passes that come to their end."""
    ids: list[int] = []
    model.register_forward_hook(lambda _module, args, _output: ids.extend(args[0][0].tolist()))
    return ids


def interrupted(model, after):
    """Ctrl-C in the middle of the forward pass that comes behind `after` others; gives a hook to remove."""
    passes = iter(range(after))

    def interrupt(*_):
        if next(passes, None) is None:
            raise KeyboardInterrupt

    return model.model.layers[1].register_forward_pre_hook(interrupt)
