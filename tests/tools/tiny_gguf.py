"""Write tiny models that llama.cpp really loads and runs, and broken ones that it does not.

   python -m tests.tools.tiny_gguf count out.gguf

Kinds:
 count            counts in words: after "one two three" comes " four five six", for greedy
                  sampling and for temperature 1; any other prompt starts with " one two"
 random           random weights: babble with broken UTF-8 in it
 embed            a random BERT encoder with mean pooling
 rerank           a random BERT cross-encoder
 corrupt          starts like a model and has nonsense in its header
 truncated        a `count` model whose last weights are cut off
 duplicate_vocab  a `count` model with one word twice: loading it aborts llama.cpp's process

Needs gguf and numpy.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

WORDS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen", "twenty"),
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
# Marks the start of a word in SentencePiece and WordPiece vocabularies.
SPACE = "\u2581"
HEADS = 4
LLM_CONTEXT, BERT_CONTEXT = 2048, 256
# The models are tiny, so cutting off this much loses weights but keeps the header.
KEPT_WHEN_TRUNCATED = 0.5

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """The size of a model and the seed of its random numbers."""

    seed: int = 1
    embd: int = 64
    layers: int = 1
    ctx: int = 0
    eos_after_last: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their scores and types; `first_word` is the token of "one"."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    first_word: int


def write_tiny(
    kind: str,
    path: Path | str,
    *,
    seed: int = 1,
    embd: int = 64,
    layers: int = 1,
    ctx: int = 0,
    eos_after_last: bool = False,
) -> Path:
    """Write a model file and return its path.

    `ctx` 0 means 2048 tokens (256 for encoders). With `eos_after_last` a counting model ends its
    text after "twenty"; without it, it continues with "one". More layers make it slower.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    shape = Shape(seed, embd, layers, ctx, eos_after_last)
    KINDS[kind](Path(path), shape)
    return Path(path)


def write(kind: str, path: Path | str, **shape: Any) -> Path:
    """Another name for `write_tiny`."""
    return write_tiny(kind, path, **shape)


def spm_vocabulary() -> Vocabulary:
    """A SentencePiece vocabulary: bytes, the words, and all pieces that merge into them."""
    kinds = gguf.TokenType
    tokens, scores = ["<unk>", "<s>", "</s>"], [0.0] * 3
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
    for byte in range(256):  # any input can be tokenised
        tokens.append(f"<0x{byte:02X}>")
        scores.append(0.0)
        types.append(kinds.BYTE)
    first_word = len(tokens)
    for number, word in enumerate(WORDS):
        tokens.append(SPACE + word)
        scores.append(-1.0 - number * 1e-3)
        types.append(kinds.NORMAL)
    seen = set(tokens)

    def add(piece: str, score: float) -> None:
        if piece not in seen:
            seen.add(piece)
            tokens.append(piece)
            scores.append(score)
            types.append(kinds.NORMAL)

    # Pairs are merged bottom-up, so every prefix of a word must be a token as well.
    for word in (SPACE + word for word in WORDS):
        for length in range(1, len(word)):
            for piece in (word[:length], word[length]):
                add(piece, -50.0 + 2 * len(piece))
    for char in map(chr, range(33, 127)):
        add(char, -100.0)
    return Vocabulary(tokens, scores, [int(kind) for kind in types], first_word)


class _Random:
    """Normally distributed tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self._numbers = np.random.default_rng(seed)

    def __call__(self, *shape: int, scale: float) -> Floats:
        return (self._numbers.standard_normal(shape) * scale).astype(np.float32)


def _ones(size: int) -> Floats:
    return np.ones(size, np.float32)


def _zeros(size: int) -> Floats:
    return np.zeros(size, np.float32)


def _counting(
    vocabulary: Vocabulary, embedding: Floats, random: _Random, eos_after_last: bool
) -> Floats:
    """Return output rows that point from each word to the next; changes the embedding to fit."""
    size, width = embedding.shape
    first, count = vocabulary.first_word, len(WORDS)
    output = np.zeros((size, width), np.float32)
    for number in range(count):
        output[first + (number + 1) % count] = 4 * embedding[first + number]
    if eos_after_last:
        output[first] = 0
        output[2] = 4 * embedding[first + count - 1]
    # All other tokens share a direction that leads to "one", whatever the prompt ends in.
    others = [token for token in range(size) if not first <= token < first + count]
    shared = random(width, scale=1.0)
    shared /= np.linalg.norm(shared)
    embedding[others] = 0.6 * embedding[others] + 0.8 * shared
    words = slice(first, first + count)
    embedding[words] -= np.outer(embedding[words] @ shared, shared)
    output[first] += 4 * shared
    return output


def _write_llm(path: Path, shape: Shape, *, count: bool, vocabulary: Vocabulary) -> None:
    random, width, hidden = _Random(shape.seed), shape.embd, 2 * shape.embd
    writer = gguf.GGUFWriter(path, "llama")
    size = len(vocabulary.tokens)
    writer.add_name("tiny-count" if count else "tiny-random")
    writer.add_description("synthetic test model")
    writer.add_license("cc0-1.0")
    writer.add_size_label(f"{size * width * 2 // 1000}K")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(shape.ctx or LLM_CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // HEADS)
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    embedding = random(size, width, scale=1.0)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    if count:
        output = _counting(vocabulary, embedding, random, shape.eos_after_last)
    else:
        output = random(size, width, scale=2.0)  # byte tokens stay likely, for odd UTF-8
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", _ones(width))
    writer.add_tensor("output.weight", output)
    # Blocks that add nothing leave the counting to the embedding and the output.
    added = 0.0 if count else 0.3
    for number in range(shape.layers):
        block = f"blk.{number}."
        writer.add_tensor(block + "attn_norm.weight", _ones(width))
        for name in ("attn_q", "attn_k", "attn_v"):
            writer.add_tensor(f"{block}{name}.weight", random(width, width, scale=0.3))
        writer.add_tensor(block + "attn_output.weight", random(width, width, scale=added))
        writer.add_tensor(block + "ffn_norm.weight", _ones(width))
        writer.add_tensor(block + "ffn_gate.weight", random(hidden, width, scale=0.3))
        writer.add_tensor(block + "ffn_up.weight", random(hidden, width, scale=0.3))
        writer.add_tensor(block + "ffn_down.weight", random(width, hidden, scale=added))
    _finish(writer)


def _bert_vocabulary() -> tuple[list[str], list[int]]:
    kinds = gguf.TokenType
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    types = [int(kinds.CONTROL)] * len(tokens)
    types[1] = int(kinds.UNKNOWN)
    for char in map(chr, range(33, 127)):
        if not char.isupper():
            tokens += [SPACE + char, char]  # at the start of a word, and inside
    more = ("the", "a", "of", "is", "in", "capital", "france", "paris", "cat", "dog", "berlin")
    tokens += [SPACE + word for word in (*WORDS, *more, "germany")]
    tokens = list(dict.fromkeys(tokens))
    return tokens, types + [int(kinds.NORMAL)] * (len(tokens) - len(types))


def _write_bert(path: Path, shape: Shape, *, rerank: bool) -> None:
    random, width, hidden = _Random(shape.seed), shape.embd, 2 * shape.embd
    context = shape.ctx or BERT_CONTEXT
    tokens, types = _bert_vocabulary()
    pooling = gguf.PoolingType.RANK if rerank else gguf.PoolingType.MEAN
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("tiny-rerank" if rerank else "tiny-embed")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_vocab_size(len(tokens))
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_eos_token_id(3)
    writer.add_mask_token_id(4)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)

    writer.add_tensor("token_embd.weight", random(len(tokens), width, scale=1.0))
    writer.add_tensor("position_embd.weight", random(context, width, scale=0.02))
    writer.add_tensor("token_types.weight", random(2, width, scale=0.02))
    writer.add_tensor("token_embd_norm.weight", _ones(width))
    writer.add_tensor("token_embd_norm.bias", _zeros(width))
    for number in range(shape.layers):
        block = f"blk.{number}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"{block}{name}.weight", random(width, width, scale=0.2))
            writer.add_tensor(f"{block}{name}.bias", _zeros(width))
        for name in ("attn_output_norm", "layer_output_norm"):
            writer.add_tensor(f"{block}{name}.weight", _ones(width))
            writer.add_tensor(f"{block}{name}.bias", _zeros(width))
        writer.add_tensor(block + "ffn_up.weight", random(hidden, width, scale=0.2))
        writer.add_tensor(block + "ffn_up.bias", _zeros(hidden))
        writer.add_tensor(block + "ffn_down.weight", random(width, hidden, scale=0.2))
        writer.add_tensor(block + "ffn_down.bias", _zeros(width))
    if rerank:
        writer.add_tensor("cls.weight", random(width, width, scale=0.2))
        writer.add_tensor("cls.bias", _zeros(width))
        writer.add_tensor("cls.output.weight", random(1, width, scale=1.0))
        writer.add_tensor("cls.output.bias", _zeros(1))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _count(path: Path, shape: Shape) -> None:
    _write_llm(path, shape, count=True, vocabulary=spm_vocabulary())


def _random(path: Path, shape: Shape) -> None:
    _write_llm(path, shape, count=False, vocabulary=spm_vocabulary())


def _embed(path: Path, shape: Shape) -> None:
    _write_bert(path, shape, rerank=False)


def _rerank(path: Path, shape: Shape) -> None:
    _write_bert(path, shape, rerank=True)


def _corrupt(path: Path, shape: Shape) -> None:
    noise = np.random.default_rng(shape.seed).bytes(4096)
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + noise)


def _truncated(path: Path, shape: Shape) -> None:
    _count(path, shape)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * KEPT_WHEN_TRUNCATED)])


def _duplicate_vocab(path: Path, shape: Shape) -> None:
    vocabulary = spm_vocabulary()
    vocabulary.tokens[-1] = vocabulary.tokens[-2]
    _write_llm(path, shape, count=True, vocabulary=vocabulary)


KINDS: dict[str, Callable[[Path, Shape], None]] = {
    "count": _count,
    "random": _random,
    "embed": _embed,
    "rerank": _rerank,
    "corrupt": _corrupt,
    "truncated": _truncated,
    "duplicate_vocab": _duplicate_vocab,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write one file, as given on the command line."""
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model for tests.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--embd", type=int, default=64)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--ctx", type=int, default=0)
    parser.add_argument("--eos-after-last", action="store_true")
    given = parser.parse_args(argv)
    write_tiny(
        given.kind,
        given.path,
        seed=given.seed,
        embd=given.embd,
        layers=given.layers,
        ctx=given.ctx,
        eos_after_last=given.eos_after_last,
    )


if __name__ == "__main__":
    main()
