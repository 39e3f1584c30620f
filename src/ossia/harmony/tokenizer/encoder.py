"""Two encoders of the same vocabulary: that of the checkpoint's tokenizer.json, and one that is ten times faster.

The fast encoder is the byte-pair encoder of the package bpe-openai, which contains `o200k_base`. It is used only for
a tokenizer.json with the SHA-256 of the published file. So text for a checkpoint with another vocabulary is never
encoded with the wrong tables. Both encoders give the same ids for any text (tests/harmony/test_vocabulary.py).
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ossia.errors import UserError
from ossia.harmony.tokenizer.files import PUBLISHED_FILES, SPECIAL_TOKENS, byte_alphabet, read_ranks

PUBLISHED_SHA256 = PUBLISHED_FILES["tokenizer.json"][1]
"""SHA-256 of the tokenizer.json that openai/gpt-oss-20b and -120b share."""

_PROBE = "Don't  naïve 日本語 👩‍🚀 1234567 camelCase HTTPServer\r\n\tx += 1;"
_PROBE_IDS = [
    31559, 220, 153475, 737, 17428, 40909, 61138, 102, 2524, 112927, 222, 220, 7633, 19354, 22, 83330, 6187, 21929,
    6444, 370, 21395, 2757, 220, 16, 26,
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Encoder:
    """Functions that encode text to token ids and look up the bytes of single ids."""

    encode: Callable[[str], list[int]]
    """Text -> ids; control tokens in it are plain text. A lone surrogate raises UnicodeEncodeError or TypeError."""
    token: Callable[[int], bytes | None]
    """Id -> bytes of an ordinary token; None for all other ids."""
    name: str
    """The package that implements the encoder."""


def encoder_for(path: Path, digest: str) -> Encoder:
    """Return the fastest encoder that is correct for a tokenizer.json.

    Args:
        path: the tokenizer.json.
        digest: its SHA-256.

    Raises:
        UserError: the file cannot be read, or is not the tokenizer of gpt-oss.
    """
    return (fast_encoder() if digest == PUBLISHED_SHA256 else None) or file_encoder(path)


@functools.lru_cache(maxsize=1)
def fast_encoder() -> Encoder | None:
    """Return the encoder of bpe-openai, or None if the package is missing or encodes a probe text differently."""
    try:
        tokenizer = _bindings().tokenizer_for_encoding("o200k_base")
        same = tokenizer.encode(_PROBE) == _PROBE_IDS
    except (ImportError, AttributeError, ValueError):
        return None
    return Encoder(tokenizer.encode, lambda id: _table().get(id), "bpe-openai") if same else None


def _bindings() -> Any:
    """Return the extension module without the package, whose own tables take half a second to import."""
    package = importlib.util.find_spec("bpe_openai")
    places = package.submodule_search_locations if package else None
    spec = importlib.machinery.PathFinder.find_spec("bpe_openai._bindings", places) if places else None
    if spec is None or spec.loader is None:
        raise ImportError("bpe-openai is not installed")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.lru_cache(maxsize=1)
def _table() -> dict[int, bytes]:
    return {rank: token for token, rank in read_ranks().items()}


def file_encoder(path: Path) -> Encoder:
    """Return the encoder that a tokenizer.json describes, in Hugging Face's tokenizers.

    Raises:
        UserError: the file cannot be read, or its control tokens differ from those of gpt-oss.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises plain Exception
        raise UserError("tokenizer.json cannot be read", where=str(path), why=str(error)) from error
    if any(tokenizer.token_to_id(SPECIAL_TOKENS[id]) != id for id in (200002, 200005, 200006, 200007, 200008, 200012)):
        raise UserError(
            "This is not the tokenizer of gpt-oss",
            where=str(path),
            why="the control tokens <|start|>, <|message|>, ... have other ids or are missing",
            do="copy tokenizer.json from openai/gpt-oss-20b into the folder",
        )
    tokenizer.encode_special_tokens = True
    byte_of = {character: byte for byte, character in byte_alphabet().items()}

    def token(id: int) -> bytes | None:
        text = tokenizer.id_to_token(id)
        return None if text is None else bytes(byte_of[character] for character in text)

    return Encoder(lambda text: tokenizer.encode(text, add_special_tokens=False).ids, token, "tokenizers")
