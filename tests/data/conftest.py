"""A tiny llama as a GGUF file, written tensor by tensor with the gguf package, and a cache of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

VOCABULARY, WIDTH, HEADS, LAYERS, INNER = 300, 32, 4, 2, 64


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of this test alone."""
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The file, and its tensors by their GGUF names."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_tiny_gguf(path)


def write_tiny_gguf(path: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Write the file; gives its tensors by their GGUF names, float32."""
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    pairs = [a + b for a in "etaoin" for b in "etaoin"][: VOCABULARY - len(letters) - 2]
    tokens = ["<|end|>", "<|start|>", *letters, *pairs]
    tokens += [f"<extra{i}>" for i in range(VOCABULARY - len(tokens))]

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_merges([f"{pair[0]} {pair[1]}" for pair in pairs])
    writer.add_token_types([3, 3] + [1] * (VOCABULARY - 2))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    tensors = _tensors(np.random.default_rng(seed))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _tensors(random: np.random.Generator) -> dict[str, np.ndarray]:
    def matrix(*shape: int) -> np.ndarray:
        return random.normal(0, 0.1, shape).astype(np.float32)

    one = np.ones(WIDTH, dtype=np.float32)
    tensors = {"token_embd.weight": matrix(VOCABULARY, WIDTH), "output_norm.weight": one}
    tensors["output.weight"] = matrix(VOCABULARY, WIDTH)
    for layer in range(LAYERS):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": one,
            f"blk.{layer}.ffn_norm.weight": one,
            f"blk.{layer}.attn_q.weight": matrix(WIDTH, WIDTH),
            f"blk.{layer}.attn_k.weight": matrix(WIDTH // 2, WIDTH),
            f"blk.{layer}.attn_v.weight": matrix(WIDTH // 2, WIDTH),
            f"blk.{layer}.attn_output.weight": matrix(WIDTH, WIDTH),
            f"blk.{layer}.ffn_gate.weight": matrix(INNER, WIDTH),
            f"blk.{layer}.ffn_up.weight": matrix(INNER, WIDTH),
            f"blk.{layer}.ffn_down.weight": matrix(WIDTH, INNER),
        }
    return tensors
