"""Harmony as text, cut at the control tokens spelt out in it: a stand-in for a vocabulary where none is at hand."""

from __future__ import annotations

import re

from ossia.harmony.tokenizer.vocabulary import SPECIAL_TOKENS, STARTOFTEXT

_PATTERN = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS.values())) + ")")
_SPECIAL_IDS = {text: id for id, text in SPECIAL_TOKENS.items()}


class Pieces:
    """Gives every piece of text an id of its own, and control tokens their true ones."""

    def __init__(self) -> None:
        self._known = {id: text.encode() for id, text in SPECIAL_TOKENS.items()}
        self._next = 0

    def split(self, text: str) -> list[str]:
        """Control tokens and the pieces between them. Lone surrogates become U+FFFD."""
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return [piece for piece in _PATTERN.split(whole) if piece]

    def id_of(self, piece: str) -> int:
        """The id of the next piece of the text."""
        if (special := _SPECIAL_IDS.get(piece)) is not None:
            return special
        id, self._next = self._next, (self._next + 1) % STARTOFTEXT  # by then nobody asks for the old ones
        self._known[id] = piece.encode()
        return id

    def token_bytes(self, id: int) -> bytes:
        """The bytes of a piece or a control token."""
        return self._known[id]
