"""Token sequences for the eye: every token, control tokens included, coloured by channel, the trained ones marked.

With colour, trained tokens are bold and underlined and the rest is dim. Without, trained stretches stand in «...».
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.style import Style
from rich.text import Text

from ossia.errors import harmless
from ossia.harmony.tokenizer.vocabulary import START, STARTOFTEXT, VOCABULARY_SIZE, Vocabulary

CHANNEL_COLOURS = {
    "system": "blue",
    "developer": "magenta",
    "user": "cyan",
    "tool": "yellow",
    "analysis": "bright_black",
    "commentary": "yellow",
    "final": "green",
}
_OPEN, _SHUT = "«", "»"


def preview(
    ids: Sequence[int],
    weights: Sequence[float],
    channels: Sequence[str],
    vocabulary: Vocabulary,
    *,
    colour: bool = True,
    legend: bool = True,
) -> Text:
    """Draw a training example (or any tokens with weights and channels of the same length).

    A character that several tokens share is drawn with the first of them. Every message starts on a line of its own.
    """
    text = _legend(channels, colour) if legend else Text()
    inside = False
    for first, _, piece in pieces(ids, vocabulary):
        trained = weights[first] > 0
        if not colour and inside and not trained:
            text.append(_SHUT)
        if ids[first] == START and first:
            text.append("\n")
        if not colour and trained and not inside:
            text.append(_OPEN)
        inside = trained
        text.append(piece, _style(channels[first], trained, ids[first]) if colour else None)
    if inside and not colour:
        text.append(_SHUT)
    return text


def preview_plain(ids: Sequence[int], weights: Sequence[float], channels: Sequence[str], vocabulary: Vocabulary) -> str:
    """The same without colour, as a string."""
    return preview(ids, weights, channels, vocabulary, colour=False).plain


def pieces(ids: Sequence[int], vocabulary: Vocabulary) -> Iterator[tuple[int, int, str]]:
    """Cut ids into the shortest stretches [start, stop) that are whole characters, and spell them safely."""
    pending: list[int] = []
    for position, id in enumerate(ids):
        pending.append(id)
        if position + 1 == len(ids) or _ends_character(pending, vocabulary):
            yield position + 1 - len(pending), position + 1, harmless(vocabulary.decode(pending))
            pending = []


def _ends_character(ids: list[int], vocabulary: Vocabulary) -> bool:
    """Whether the bytes of these tokens end with a whole character (or cannot become one any more)."""
    data = b"".join(map(vocabulary.token_bytes, ids))
    for length in range(1, min(4, len(data)) + 1):
        byte = data[-length]
        if byte & 0xC0 != 0x80:  # the byte that starts the last character
            needed = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return length >= needed
    return True


def _style(channel: str, trained: bool, id: int) -> Style:
    control = STARTOFTEXT <= id < VOCABULARY_SIZE
    return Style(color=CHANNEL_COLOURS.get(channel), bold=trained, underline=trained, dim=not trained, italic=control)


def _legend(channels: Sequence[str], colour: bool) -> Text:
    seen = [channel for channel in CHANNEL_COLOURS if channel in set(channels)]
    if not colour:
        return Text(f"{_OPEN}trained{_SHUT} given\n\n")
    legend = Text.assemble(("trained", "bold underline"), "  ", ("given", "dim"), "  ", ("<|control|>", "italic"))
    for channel in seen:
        legend.append("  ").append(channel, Style(color=CHANNEL_COLOURS[channel]))
    return legend.append("\n\n")
