"""A tiny language model made on the spot: real weights of the right shapes, random in value.

Architecture ``llama``, byte-level BPE trained on the sources of Python's standard library, printable ASCII
only (llama.cpp's server ends a chat with an error when a model emits half a character, and random weights
emit anything).  What it says is noise; how long it takes is real.  The same seed gives the same file.

Needs the packages ``gguf``, ``tokenizers`` and ``numpy`` (the extra ``real``).
"""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_CORPUS_BYTES = 5_000_000
_SPECIAL = ("<|end|>", "<|start|>")
#: Every message in a line of its own; short, so that prompts are as long as their text.
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is."""

    vocabulary: int = 24_000
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    feed_forward: int = 768
    context: int = 32_768


def build(path: Path, seed: int = 0, shape: Shape | None = None) -> Path:
    """Write the model to ``path`` (a GGUF file) unless it is there already; returns ``path``."""
    if path.exists():
        return path
    shape = shape or Shape()
    tokens, merges = _vocabulary(shape.vocabulary)
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(part, tokens, merges, shape, np.random.default_rng(seed))
    part.rename(path)  # never half a file under the name
    return path


def _corpus() -> Iterator[str]:
    """Lines of the standard library, printable ASCII only, in a fixed order."""
    left = _CORPUS_BYTES
    for source in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = source.read_bytes()[:left]
        left -= len(text)
        yield from text.decode("ascii", errors="ignore").splitlines()
        if left <= 0:
            return


def _vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens in order of their ids, and the merges of the BPE."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Of the 256 bytes only those of printable ASCII and the line feed, in the byte-level alphabet's letters.
    alphabet = [chr(byte) for byte in range(0x21, 0x7F)] + ["\u0120", "\u010a"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _write(path: Path, tokens: list[str], merges: list[str], shape: Shape, rng: np.random.Generator) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("legato-demo-tiny")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if token in _SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)
    for name, size in _tensors(len(tokens), shape):
        weights = np.ones(size) if len(size) == 1 else rng.normal(0.0, 0.02, size)
        writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(vocabulary: int, shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, feed_forward = shape.hidden, shape.feed_forward
    yield "token_embd.weight", (vocabulary, hidden)
    for layer in range(shape.layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"blk.{layer}.{name}.weight", (hidden, hidden)
        yield f"blk.{layer}.ffn_gate.weight", (feed_forward, hidden)
        yield f"blk.{layer}.ffn_up.weight", (feed_forward, hidden)
        yield f"blk.{layer}.ffn_down.weight", (hidden, feed_forward)
        yield f"blk.{layer}.attn_norm.weight", (hidden,)
        yield f"blk.{layer}.ffn_norm.weight", (hidden,)
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (vocabulary, hidden)
