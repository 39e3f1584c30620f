"""Tests of the vocabulary against published hashes and against openai-harmony's encoder."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import subprocess
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import UserError
from ossia.harmony.tokenizer import encoder, vocabulary
from ossia.harmony.tokenizer import files as tokenizer_files
from ossia.harmony.tokenizer.vocabulary import END, RETURN, START, VOCABULARY_SIZE, Vocabulary
from support import harmony_samples as samples

# SHA-256 of the files of openai/gpt-oss-20b on Hugging Face, revision 6cee5e81.
PUBLISHED = {
    "tokenizer.json": "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
    "tokenizer_config.json": "9279e942392b742d633c7adbb89ebe002c98399db8926a7af5125c726f404070",
    "special_tokens_map.json": "dd5e191d20c12d2fee1da5bae14ca1db0f5f4215300af691f23cdee97120a293",
    "generation_config.json": "f9970ada892d2d1f72e3ed0a6535ccebadd11897318794ca671d8c7014c957da",
}


@pytest.fixture(scope="module")
def words(tokenizer_folder: Path) -> Vocabulary:
    return Vocabulary.load(tokenizer_folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_are_byte_identical_to_the_published_ones(tokenizer_folder: Path, name: str) -> None:
    assert hashlib.sha256((tokenizer_folder / name).read_bytes()).hexdigest() == PUBLISHED[name]


def test_two_processes_repair_a_damaged_cache_at_once(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_CACHE", str(tmp_path))
    folder = tmp_path / tokenizer_folder.name
    folder.mkdir()
    (folder / "tokenizer.json").hardlink_to(tokenizer_folder / "tokenizer.json")  # so the processes need not build it
    (folder / "generation_config.json").write_text("{")
    command = [
        sys.executable,
        "-c",
        "from ossia.harmony.tokenizer.vocabulary import offline_tokenizer_folder as f; print(f())",
    ]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {process.communicate()[0].strip() for process in running} == {str(folder)}
    assert sorted(p.name for p in folder.iterdir()) == sorted(PUBLISHED)
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == PUBLISHED[name] for name in PUBLISHED)


def test_missing_package_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install bpe-openai"):
        tokenizer_files.offline_tokenizer_folder()


def test_altered_ranks_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "RANKS_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not those of o200k_base"):
        tokenizer_files.read_ranks()


def test_encoding_equals_openai_harmony(words: Vocabulary) -> None:
    judge, rng = samples.judge(), random.Random(7)
    for _ in range(3000):
        text = samples.text(rng, 12)
        assert words.encode(text) == judge.encode(text, disallowed_special=()), repr(text)
        specials = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>")
        assert words.encode_with_specials(text) == judge.encode(
            text, allowed_special=set(specials), disallowed_special=()
        )


@given(st.text())
def test_round_trip(text: str) -> None:
    assert Vocabulary.load().decode(Vocabulary.load().encode(text)) == text


@given(st.text(alphabet=st.characters(codec=None, categories=["Cs", "L"])))
def test_lone_surrogates_do_not_raise(text: str) -> None:
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert Vocabulary.load().decode(Vocabulary.load().encode(text)) == expected


@given(st.lists(st.integers(-5, VOCABULARY_SIZE + 5), max_size=20))
def test_decoding_is_total_and_equals_openai_harmony(ids: list[int]) -> None:
    decoded = Vocabulary.load().decode(ids)
    if all(0 <= id < VOCABULARY_SIZE and id != 200018 for id in ids):  # 200018 has two names
        assert decoded == samples.judge().decode(ids)
    else:
        assert isinstance(decoded, str)


def test_bytes_of_every_token_equal_the_ranks(words: Vocabulary) -> None:
    assert all(words.token_bytes(rank) == token for token, rank in tokenizer_files.read_ranks().items())


def test_single_tokens(words: Vocabulary) -> None:
    assert words.token_text(START) == "<|start|>" and words.token_text(200_500) == "<|reserved_200500|>"
    assert words.token_text(-1) == words.token_text(VOCABULARY_SIZE + 1) == "�"
    assert words.encode("<|end|>") == [27, 91, 419, 91, 29]
    assert words.encode_with_specials("<|end|>a<|return|>") == [END, *words.encode("a"), RETURN]


def test_transformers_reads_the_folder_and_agrees(tokenizer_folder: Path, words: Vocabulary) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (
        200019,
        200002,
        199999,
        199998,
    )
    text = "<|start|>user<|message|>Grüße, 世界!\r\n  x<|end|>"
    assert tokenizer(text)["input_ids"] == words.encode_with_specials(text)


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        Vocabulary.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Vocabulary.load(tmp_path)
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="not the tokenizer of gpt-oss"):
        Vocabulary.load(tmp_path)


def test_no_heavy_import() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers', 'numpy'}"
    code = f"import sys, ossia.harmony, ossia.data, ossia.harmony.preview; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    assert vocabulary.VOCABULARY_SIZE == 201_088


# ------------------------------------------------------------------------------------------------- the fast encoder


@pytest.fixture(scope="module")
def from_file(tokenizer_folder: Path) -> encoder.Encoder:
    return encoder.file_encoder(tokenizer_folder / "tokenizer.json")


def test_the_fast_encoder_is_used_for_the_published_vocabulary_and_for_no_other(
    tokenizer_folder: Path, tmp_path: Path, words: Vocabulary
) -> None:
    assert words.encoder == "bpe-openai" and words.digest == PUBLISHED["tokenizer.json"]
    text = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    other = Vocabulary.load(tmp_path)
    assert other.encoder == "tokenizers" and other.digest != words.digest
    assert other.encode("naïve <|end|>") == words.encode("naïve <|end|>")
    assert [other.token_bytes(id) for id in (0, 97, 199_997, 200_006)] == [
        words.token_bytes(id) for id in (0, 97, 199_997, 200_006)
    ]


def test_a_package_that_does_not_do_what_it_did_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (types.SimpleNamespace(), fake_bindings([1, 2])):
        monkeypatch.setattr(encoder, "_bindings", lambda module=module: module)
        encoder.fast_encoder.cache_clear()
        assert encoder.fast_encoder() is None
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    encoder.fast_encoder.cache_clear()
    assert encoder.fast_encoder() is None
    monkeypatch.undo()
    encoder.fast_encoder.cache_clear()
    assert encoder.fast_encoder() is not None


def fake_bindings(ids: list[int]) -> types.SimpleNamespace:
    tokenizer = types.SimpleNamespace(encode=lambda text: ids)
    return types.SimpleNamespace(tokenizer_for_encoding=lambda name: tokenizer)


def test_both_encoders_agree_on_every_code_point(from_file: encoder.Encoder) -> None:
    """Each code point is in three contexts. One text has many code points. Lone surrogates are left out."""
    fast = encoder.fast_encoder()
    assert fast is not None
    for start in range(0, 0x110000, 0x200):
        points = [chr(point) for point in range(start, start + 0x200) if not 0xD800 <= point < 0xE000]
        for text in ("".join(f"a{p} {p}1\n" for p in points), "".join(points)):
            assert fast.encode(text) == from_file.encode(text), hex(start)


def test_both_encoders_agree_on_random_text(from_file: encoder.Encoder) -> None:
    fast, rng = encoder.fast_encoder(), random.Random(9)
    assert fast is not None
    for _ in range(4000):
        pieces = [samples.text(rng, 10), " " * rng.randint(0, 9), "\n" * rng.randint(0, 3), rng.choice("aA'\t/") * 40]
        text = "".join(rng.sample(pieces, 4))
        assert fast.encode(text) == from_file.encode(text), repr(text)
