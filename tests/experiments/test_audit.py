"""The audit: right where sinkscope is right, wrong where an error is planted, and a page that says which."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

import sinkscope
from sinkscope.attention.eviction import KeySet, WindowEviction
from sinkscope.attention.masks import BandMask
from sinkscope.experiments.audit import CHECKS, TOKENS, TOLERANCES, _Loop, audit_type
from sinkscope.hf.tiny import LAYERS, NEEDED, VARIANTS, causal_types, size_of, tiny_model
from sinkscope.reporting.compatibility import compatibility_page
from sinkscope.scope import interface, lazy_mask
from tests.test_cli import call

RIGHT = [  # one or two of each kind of positions, masks, heads and softmax
    "llama", "llama+llama3", "llama+linear", "llama+num_key_value_heads", "mistral", "mistral+sliding_window",
    "mixtral", "qwen2+use_sliding_window", "qwen3", "qwen3+yarn", "gemma2", "gemma2+attn_logit_softcapping",
    "gemma3_text", "gemma4_text+attention_k_eq_v", "gpt_oss", "deepseek_v2", "deepseek_v3+yarn", "phi",
    "phi3+longrope", "gptj", "falcon", "falcon+new_decoder_architecture", "mpt", "bloom", "cohere2", "smollm3",
    "exaone4", "olmo2", "glm4", "granite_swa", "gpt_neox", "persimmon",
]  # fmt: skip
LEARNED = "depend on their position otherwise than by a rotation (learned absolute positions, sines, an adapter"
NO_ATTENTION = "sinkscope measures models with softmax attention"
REFUSED = {  # the checks that are right, and what all others say
    "gpt2": (("capture", "perplexity"), LEARNED),
    "opt": (("capture", "perplexity"), LEARNED),
    "mamba": ((), NO_ATTENTION),
    "xlstm": ((), NO_ATTENTION),
}


@pytest.mark.slow
@pytest.mark.parametrize("model_type", RIGHT)
def test_what_sinkscope_measures_is_what_the_model_does_by_itself(model_type):
    found = audit_type(model_type)
    assert [each.check for each in found] == list(CHECKS)
    for each in found:
        assert each.verdict == "right", f"{each.check}: {each.verdict}, {each.error}, {each.sentence}"
        assert each.error <= TOLERANCES[each.check] and each.sentence == ""


@pytest.mark.slow
@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_done_is_refused_with_the_reason(model_type):
    right, sentence = REFUSED[model_type]
    for each in audit_type(model_type):
        assert each.verdict == ("right" if each.check in right else "refused"), each
        assert each.check in right or sentence in each.sentence


def verdicts(model_type="llama"):
    return {each.check: each.verdict for each in audit_type(model_type)}


ALL_RIGHT = dict.fromkeys(CHECKS, "right")


def one_key_less(past):
    """In the place of causal masks: the last query whose loss counts, and those after it, do not see the first key."""
    return BandMask(past, TOKENS - 3)


@pytest.mark.slow
def test_a_capture_and_dense_losses_with_one_key_less_for_two_queries_are_found_wrong(monkeypatch):
    for module in (interface, lazy_mask):
        monkeypatch.setattr(module, "CausalMask", one_key_less)
    found = verdicts()
    assert found["capture"] == "wrong" and found["perplexity"] == "wrong"


@pytest.mark.slow
def test_a_window_of_one_key_less_is_found_wrong_in_streaming(monkeypatch):
    def rest(self, block):
        past = block.key.shape[2] - self.sinks - block.query.shape[2]
        return [KeySet(block.at(slice(self.sinks, None)), BandMask(past, self.window - 1))]

    monkeypatch.setattr(WindowEviction, "rest", rest)
    found = verdicts()  # a cache reads a prompt in the same way
    assert found == {**ALL_RIGHT, "streaming": "wrong", "cache": "wrong"}


@pytest.mark.slow
def test_a_cache_of_one_key_less_is_found_wrong(monkeypatch):
    cache = sinkscope.SinkCache
    monkeypatch.setattr(sinkscope, "SinkCache", lambda model, sinks, window: cache(model, sinks, window - 1))
    assert verdicts() == {**ALL_RIGHT, "cache": "wrong"}


@pytest.mark.slow
def test_sinks_of_a_model_that_reads_more_from_positions_than_distances_are_moved_in_their_rotation_alone():
    ids = torch.randint(3, 100, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    llama, scaled = (_Loop(tiny_model(name), ids) for name in ("llama+linear", "ministral3+llama_4_scaling_beta"))
    with torch.no_grad():
        assert llama._rotary == [] and scaled._rotary == [scaled.model.model.rotary_emb]
        as_usual = llama.logits(2, 14)
        other = _Loop(llama.model, ids)
        other._rotary = [llama.model.model.rotary_emb]  # where distances are all that counts, it is all the same
        torch.testing.assert_close(other.logits(2, 14), as_usual, atol=1e-4, rtol=0)  # logits reach 5
        # nothing evicted
        torch.testing.assert_close(scaled.logits(2, TOKENS), scaled.model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_maps_of_an_eager_attention_with_other_logits_are_no_reference():
    """Falcon adds its linear biases twice there."""
    capture, *rest = audit_type("falcon+alibi")
    assert capture.verdict == "unchecked" and "gives other logits than the model does" in capture.sentence
    assert [each.verdict for each in rest] == ["right"] * 3


@pytest.mark.slow
def test_a_crash_is_told_with_its_place(monkeypatch):
    def broken(*_, **__):
        raise IndexError("out of\nreach")

    monkeypatch.setattr(sinkscope, "attention_maps", broken)
    capture = audit_type("llama")[0]
    assert capture.verdict == "crash" and capture.sentence.startswith("IndexError: out of reach (test_audit.py:")


# --- the tiny models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", [*NEEDED, *VARIANTS])
def test_what_a_type_is_told_is_what_its_model_has(model_type):
    if model_type not in causal_types():
        model_type = model_type.removesuffix("_decoder")  # a part of the configuration of another
    assert sum(weights.numel() for weights in tiny_model(model_type).parameters()) < 2_000_000


@pytest.mark.parametrize("model_type", ["gemma3_text", "qwen3_next", "dots3_note_text", "lfm2", "exaone4"])
def test_a_tiny_model_has_every_kind_of_layer_that_the_type_has(model_type):
    tiny = tiny_model(model_type).config
    real = type(tiny)()
    assert set(tiny.layer_types) == set(real.layer_types) and len(tiny.layer_types) == LAYERS


def test_a_tiny_model_is_the_same_every_time():
    first, again, other = (tiny_model("llama", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_size_follows_from_its_name():
    assert size_of("num_hidden_layers") == LAYERS and size_of("hidden_act") is None


# --- the table, the page, the command --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_table_has_four_rows_for_each_type_in_alphabetical_order():
    table = sinkscope.audit(["mamba", "llama", "mamba"], progress=False)
    assert list(table.columns) == ["type", "class", "check", "verdict", "error", "sentence"]
    assert table["type"].tolist() == ["llama"] * 4 + ["mamba"] * 4
    assert table["class"].unique().tolist() == ["LlamaForCausalLM", "MambaForCausalLM"]
    assert table.attrs["tolerance"] == TOLERANCES["cache"]


@pytest.mark.parametrize("types", ["lama", ["llama", "nonsense"], ["llama+nonsense"], []])
def test_an_unknown_type_is_refused_before_any_is_checked(types, monkeypatch):
    monkeypatch.setattr("sinkscope.experiments.audit.audit_type", lambda name: pytest.fail("ran"))
    with pytest.raises(sinkscope.SinkscopeError, match="type"):
        sinkscope.audit(types)


def findings(**changes):
    """A made-up table: type, class, verdict of capture, error, sentence; all other checks are right."""
    rows = [
        (name, kind, check, *(given if check == "capture" else ("right", 1e-7, "")))
        for name, kind, given in (
            ("b", "BModel", ("refused", float("nan"), "BModel has no a|b.")),
            ("a", "AModel", ("refused", float("nan"), "AModel has no a|b.")),
            ("c+d", "CModel", ("wrong", 0.25, "")),
            ("d", "", ("not built", float("nan"), "no tiny model of the type 'd' can be built: it is too large")),
        )
        for check in CHECKS
    ]
    table = pd.DataFrame(rows, columns=["type", "class", "check", "verdict", "error", "sentence"])
    table.attrs = {
        "sinkscope": "1", "transformers": "2", "torch": "3+cpu",
        "tolerance_maps": 1e-4, "tolerance": 1e-5, "tokens": 40, "sinks": 2, "window": 14,
    }  # fmt: skip
    return table


def test_the_page_counts_groups_and_numbers_what_was_found():
    page = compatibility_page(findings())
    assert "## 3 types and 1 variant\n" in page and "| variants | capture | 0 | 0 | 1 | 0 |  |" in page
    assert "| types | capture | 0 | 2 | 0 | 1 |  |" in page and "| types | cache | 3 | 0 | 0 | 0 | 1e-07 |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `a` | AModel | refused 1 | right | right | right |",
        "| `b` | BModel | refused 1 | right | right | right |",
        "| `c+d` | CModel | **wrong** (0.2) | right | right | right |",
        "| `d` |  | not built 2 | right | right | right |",
    ]
    assert "1. … has no a\\|b.\n   (2: `a`, `b`)" in page
    assert "2. no tiny model of the type … can be built: it is too large\n   (1: `d`)" in page
    assert page == compatibility_page(findings().sample(frac=1, random_state=0))  # in any order


def test_no_sentence_adds_a_line_a_cell_or_a_link_to_the_page():
    table = findings()
    plain = len(compatibility_page(table).splitlines())
    said = "one\n## two | three\u2028<script> ![x](http://a.b/c)"
    table.loc[table["sentence"] != "", "sentence"] = said
    page = compatibility_page(table)
    assert len(page.splitlines()) <= plain
    assert "one ## two \\| three &lt;script> ![x]\\(http://a.b/c)" in page


@pytest.mark.slow
def test_the_command_writes_the_table_and_the_page(monkeypatch, capsys, tmp_path):
    code, said, _ = call(monkeypatch, capsys, "audit", "llama", "gpt2", "--out", str(tmp_path / "out"))
    assert code == 0 and said.startswith("2 types:")
    table = pd.read_csv(tmp_path / "out" / "compatibility.csv", keep_default_na=False)
    assert table["verdict"].tolist() == ["right", "right", "refused", "refused", *["right"] * 4]
    page = (tmp_path / "out" / "compatibility.md").read_text(encoding="utf-8")
    assert "| `llama` | LlamaForCausalLM | right | right | right | right |" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compatibility.csv", "compatibility.md"]


@pytest.mark.slow
def test_an_unknown_type_is_one_line_and_nothing_is_made(monkeypatch, capsys, tmp_path):
    code, said, err = call(monkeypatch, capsys, "audit", "llama", "lama", "--out", str(tmp_path / "out"))
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert "'lama'" in err and "did you mean 'llama'?" in err
    assert list(tmp_path.iterdir()) == []
