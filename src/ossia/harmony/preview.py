"""Token sequences as text for a terminal, control tokens included, with channels coloured and trained tokens marked.

With colour, trained tokens are bold and underlined and all others are dim. Without colour, ranges of trained tokens are
enclosed in «...».
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
    """Return a training example as text for a terminal. Every message starts on a new line.

    A character that several tokens share has the colour and the mark of the first of them.

    Args:
        ids: the token ids.
        weights: one per token; tokens with a weight above 0 are trained.
        channels: one per token: the channel, or the role of a message without one.
        colour: whether to mark trained tokens and channels by style. Otherwise «...» marks trained tokens.
        legend: whether to begin with an explanation of the marks.
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
    """Return the text of `preview` without colour, as a string."""
    return preview(ids, weights, channels, vocabulary, colour=False).plain


def pieces(ids: Sequence[int], vocabulary: Vocabulary) -> Iterator[tuple[int, int, str]]:
    """Yield (start, stop, text) of the shortest token ranges [start, stop) that end with a whole character.

    Control characters in the text are replaced by visible ones.
    """
    pending: list[int] = []
    for position, id in enumerate(ids):
        pending.append(id)
        if position + 1 == len(ids) or _ends_character(pending, vocabulary):
            yield position + 1 - len(pending), position + 1, harmless(vocabulary.decode(pending))
            pending = []


def _ends_character(ids: list[int], vocabulary: Vocabulary) -> bool:
    """Return whether the bytes of these tokens end with a whole character, or with bytes that cannot become one."""
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
