"""Conversion of text to token ids and back, for the vocabulary `o200k_harmony` of gpt-oss.

`encode` never makes control tokens from text: `encode("<|end|>")` gives the ids of those seven characters. So a user, a
tool or a data set cannot end a message or open a channel. The renderer inserts control tokens by their ids.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

from ossia.errors import UserError
from ossia.files import sha256_of
from ossia.harmony.tokenizer.encoder import Encoder, encoder_for
from ossia.harmony.tokenizer.files import SPECIAL_TOKENS, offline_tokenizer_folder

__all__ = [
    "CALL",
    "CHANNEL",
    "CLOSING_TOKENS",
    "CONSTRAIN",
    "CONTROL_TOKENS",
    "END",
    "ENDOFPROMPT",
    "ENDOFTEXT",
    "MESSAGE",
    "RETURN",
    "SPECIAL_TOKENS",
    "START",
    "STARTOFTEXT",
    "STOP_TOKENS",
    "VOCABULARY_SIZE",
    "Pieces",
    "Vocabulary",
    "offline_tokenizer_folder",
]

STARTOFTEXT = 199998
ENDOFTEXT = 199999  # padding
RETURN = 200002  # ends the model's turn
CONSTRAIN = 200003  # begins the content type of constrained output, as in `<|constrain|>json`
CHANNEL = 200005
START = 200006
END = 200007  # ends a message; more may follow
MESSAGE = 200008  # ends the header; the content follows
CALL = 200012  # ends a tool call; the result follows
ENDOFPROMPT = 200018

VOCABULARY_SIZE = 201_088
"""Rows of the embedding and of the output layer: ids 0..201087. Ids above 200018 are reserved and never in text."""

STOP_TOKENS = frozenset({RETURN, CALL, ENDOFTEXT})
"""Tokens that end sampling (the published generation_config.json)."""

CLOSING_TOKENS = frozenset({END, RETURN, CALL, ENDOFTEXT})
"""Tokens that end a message."""

CONTROL_TOKENS = CLOSING_TOKENS | {START, CHANNEL, CONSTRAIN, MESSAGE, STARTOFTEXT}
"""Tokens with a function in Harmony. Other ids are text: reserved ones by their names, unknown ones as U+FFFD."""

_SPECIAL_PATTERN = re.compile("(" + "|".join(re.escape(text) for text in SPECIAL_TOKENS.values()) + ")")
_SPECIAL_IDS = {text: id for id, text in SPECIAL_TOKENS.items()}
_CACHED_TEXTS = 4096
_CACHED_LENGTH = 4096  # characters; longer texts rarely repeat and would fill memory


class Vocabulary:
    """The tokenizer of one checkpoint. Immutable and safe to share between threads."""

    def __init__(self, encoder: Encoder, digest: str = "", folder: Path | None = None) -> None:
        self.digest = digest
        """SHA-256 of the tokenizer.json."""
        self.folder = folder
        """The folder of the tokenizer.json, from which other processes can load the same vocabulary."""
        self.encoder = encoder.name
        """The package that implements the encoder, for reports."""
        self._encoder = encoder
        self._bytes: dict[int, bytes] = {}
        self._encode_cached = functools.lru_cache(maxsize=_CACHED_TEXTS)(self._encode_tuple)

    @classmethod
    def load(cls, folder: Path | str | None = None) -> Vocabulary:
        """Return the vocabulary of the tokenizer.json in a folder.

        The last four vocabularies are cached. A file that has changed is read again.

        Args:
            folder: the folder of a checkpoint. None: the offline copy, `offline_tokenizer_folder`.

        Raises:
            UserError: there is no tokenizer.json, it cannot be read, or it is not the tokenizer of gpt-oss.
        """
        path = (offline_tokenizer_folder() if folder is None else Path(folder)) / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                "The checkpoint has no tokenizer.json",
                where=str(path.parent),
                do="copy tokenizer.json from openai/gpt-oss-20b into the folder",
            )
        status = path.stat()
        return _load(str(path.resolve()), status.st_mtime_ns, status.st_size)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Control tokens in it are plain text. Lone surrogates become U+FFFD."""
        try:
            return self._encoder.encode(text)
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair, which JSON can express and UTF-8 cannot
            return self._encoder.encode(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))

    def encode_tuple(self, text: str) -> tuple[int, ...]:
        """Return `encode(text)` as a tuple. Results of short texts are cached: repeated prompts, headers, tools."""
        return self._encode_cached(text) if len(text) <= _CACHED_LENGTH else self._encode_tuple(text)

    def encode_with_specials(self, text: str) -> list[int]:
        """Return the token ids of a text in which `<|start|>` etc. are control tokens. For trusted text only."""
        ids: list[int] = []
        for position, piece in enumerate(_SPECIAL_PATTERN.split(text)):
            if position % 2:
                ids.append(_SPECIAL_IDS[piece])
            elif piece:
                ids.extend(self.encode_tuple(piece))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of any ids, with control tokens spelt out. Invalid UTF-8 and unknown ids become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of one token, which are often not valid UTF-8 by themselves.

        Control tokens and reserved ids up to `VOCABULARY_SIZE` give their names, `<|end|>` or `<|reserved_200500|>`.
        Unknown ids give the bytes of U+FFFD.
        """
        known = self._bytes.get(id)
        if known is None:
            known = self._bytes[id] = self._look_up(id)
        return known

    def token_text(self, id: int) -> str:
        """Return the text of one token, with U+FFFD for invalid bytes."""
        return self.token_bytes(id).decode("utf-8", "replace")

    def _encode_tuple(self, text: str) -> tuple[int, ...]:
        return tuple(self.encode(text))

    def _look_up(self, id: int) -> bytes:
        if id in SPECIAL_TOKENS:
            return SPECIAL_TOKENS[id].encode()
        if ENDOFPROMPT < id <= VOCABULARY_SIZE:  # openai-harmony has names for one id more than the model
            return f"<|reserved_{id}|>".encode()
        token = self._encoder.token(id) if 0 <= id < STARTOFTEXT else None
        return "\N{REPLACEMENT CHARACTER}".encode() if token is None else token


class Pieces:
    """A substitute for a vocabulary, for Harmony in text form. The text is cut at the control tokens spelt out in it.

    Each piece of text gets a new id. Control tokens have their real ids.
    """

    def __init__(self) -> None:
        self._known = {id: text.encode() for id, text in SPECIAL_TOKENS.items()}
        self._next = 0

    def split(self, text: str) -> list[str]:
        """Return the control tokens in a text and the pieces between them. Lone surrogates become U+FFFD."""
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return [piece for piece in _SPECIAL_PATTERN.split(whole) if piece]

    def id_of(self, piece: str) -> int:
        """Return the id of the next piece of the text: a new one, or the real id of a control token."""
        if (special := _SPECIAL_IDS.get(piece)) is not None:
            return special
        id, self._next = self._next, (self._next + 1) % STARTOFTEXT  # ids are reused when the old ones are not needed
        self._known[id] = piece.encode()
        return id

    def token_bytes(self, id: int) -> bytes:
        """Return the bytes of a piece or of a control token."""
        return self._known[id]


@functools.lru_cache(maxsize=4)
def _load(path: str, _modified_ns: int, _size: int) -> Vocabulary:
    """Return the vocabulary of the file `path`. The other arguments invalidate the cache when the file changes."""
    digest = sha256_of(Path(path))
    return Vocabulary(encoder_for(Path(path), digest), digest, Path(path).parent)
