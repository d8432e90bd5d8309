"""Rebuilds a Hugging Face tokenizer from the vocabulary inside a GGUF file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from openrl.errors import InvalidRequest

SPACE = "\u2581"
"""How SentencePiece writes a space."""
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""The kinds of GGUF tokens that matter here."""
GEMMA_SPECIAL_TOKENS = frozenset(
    (
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<start_of_turn>",
        "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>",
    )
)
"""Google marks these as special; the thousands of other added tokens are ordinary text."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokenizer section of a GGUF file; the position of a token is its id."""

    model: str  # "llama": SentencePiece pieces with scores; "gpt2": byte-level BPE with merges
    tokens: list[str]
    kinds: list[int]
    scores: list[float]  # empty for "gpt2"
    merges: list[str]  # "left right", empty for "llama"
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int
    adds_bos: bool
    chat_template: str | None


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of tokenizer.json; raises InvalidRequest for a kind of tokenizer that is not known."""
    match vocabulary.model:
        case "llama":
            return _sentencepiece_bpe(vocabulary)
        case "gpt2":
            return _byte_level_bpe(vocabulary)
        case other:
            raise InvalidRequest(f"tokenizer model {other!r} is not known; known: 'llama', 'gpt2'")


def tokenizer_config(vocabulary: Vocabulary, context_length: int) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": vocabulary.tokens[vocabulary.bos_id],
        "eos_token": vocabulary.tokens[vocabulary.eos_id],
        "unk_token": vocabulary.tokens[vocabulary.unk_id],
        "pad_token": vocabulary.tokens[vocabulary.pad_id],
        "add_bos_token": vocabulary.adds_bos,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    if vocabulary.chat_template is not None:
        config["chat_template"] = vocabulary.chat_template
    return config


def _sentencepiece_bpe(vocabulary: Vocabulary) -> dict[str, Any]:
    """Gemma's tokenizer: spaces become U+2581, pieces merge by score, unknown characters fall back to bytes."""
    pieces = _pieces(vocabulary)
    return _tokenizer(
        added_tokens=_added_tokens(vocabulary, pieces, GEMMA_SPECIAL_TOKENS),
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        post_processor=_prepend(pieces[vocabulary.bos_id], vocabulary.bos_id) if vocabulary.adds_bos else None,
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        model=_bpe(
            pieces,
            list(merges_from_scores(pieces, vocabulary)),
            unk_token=pieces[vocabulary.unk_id],
            is_byte_fallback=True,
        ),
    )


def _byte_level_bpe(vocabulary: Vocabulary) -> dict[str, Any]:
    """SmolLM2's tokenizer: every digit is a token of its own, then byte-level BPE."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = frozenset(t for t, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if kind == CONTROL)
    merges = [_split_merge(merge) for merge in vocabulary.merges]
    return _tokenizer(
        added_tokens=_added_tokens(vocabulary, vocabulary.tokens, special),
        normalizer=None,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        post_processor=None,
        decoder=byte_level,
        model=_bpe(vocabulary.tokens, merges, unk_token=None, is_byte_fallback=False),
    )


def merges_from_scores(pieces: list[str], vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    """All ways to join two pieces into a third, in the order in which BPE must prefer them.

    SentencePiece joins the pair whose result scores best. Pieces that are not NORMAL carry a
    placeholder score in GGUF and rank first, the longest left part before the shorter ones.
    """
    known = set(pieces)
    ranked = [
        (score if kind == NORMAL else 0.0, cut, len(piece) - cut, piece)
        for piece, kind, score in zip(pieces, vocabulary.kinds, vocabulary.scores, strict=True)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    # A reverse sort keeps equal keys in their first order, which is the order of ids.
    ranked.sort(key=lambda merge: merge[:3], reverse=True)
    for _, cut, _, piece in ranked:
        yield piece[:cut], piece[cut:]


def _pieces(vocabulary: Vocabulary) -> list[str]:
    """Runs of spaces are stored as plain spaces in GGUF; the text they must match is already normalised."""
    return [
        token.replace(" ", SPACE) if kind == USER_DEFINED else token
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]


def _added_tokens(vocabulary: Vocabulary, pieces: list[str], special: frozenset[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "content": piece,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece in special,
        }
        for index, (piece, kind) in enumerate(zip(pieces, vocabulary.kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def _split_merge(merge: str) -> tuple[str, str]:
    left, right = merge.split(" ")
    return left, right


def _prepend(token: str, token_id: int) -> dict[str, Any]:
    def template(*sequences: tuple[str, int]) -> list[dict[str, Any]]:
        return [
            item
            for name, type_id in sequences
            for item in (
                {"SpecialToken": {"id": token, "type_id": type_id}},
                {"Sequence": {"id": name, "type_id": type_id}},
            )
        ]

    return {
        "type": "TemplateProcessing",
        "single": template(("A", 0)),
        "pair": template(("A", 0), ("B", 1)),
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def _bpe(
    pieces: list[str], merges: list[tuple[str, str]], unk_token: str | None, is_byte_fallback: bool
) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk_token,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": is_byte_fallback,
        "byte_fallback": is_byte_fallback,
        "ignore_merges": False,
        "vocab": {piece: index for index, piece in enumerate(pieces)},
        "merges": merges,
    }


def _tokenizer(**parts: Any) -> dict[str, Any]:
    return {"version": "1.0", "truncation": None, "padding": None, **parts}
