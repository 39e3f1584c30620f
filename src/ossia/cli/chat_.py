"""The command `ossia chat RUN_OR_MODEL`."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli import output
from ossia.cli.app import verb
from ossia.config import EFFORTS, Effort
from ossia.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console

    from ossia.generate.engine import Request
    from ossia.generate.session import Piece, Session

app = verb("Chat with a model or a run in the terminal.")

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

SLASH_COMMANDS = {
    "/new": "start a new conversation",
    "/effort": "low, medium or high: the reasoning effort",
    "/system": "TEXT: set the developer message; without TEXT: remove it",
    "/help": "show this list",
    "/quit": "end the chat (or Ctrl-D)",
}


@app.command()
def chat(
    who: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run (folder, id, part of it, `last`) or a model.")
    ],
    question: Annotated[
        str | None, typer.Option("--question", "-q", help="Ask this, print the answer and exit.")
    ] = None,
    effort: Annotated[Effort | None, typer.Option(help="Reasoning effort. Default: the run's.")] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", "--developer", help="Developer message: instructions before the conversation."),
    ] = None,
    vs: Annotated[output.Against, typer.Option(help="`base`: the base model answers first.")] = output.Against.none,
    checkpoint: Annotated[int | None, typer.Option(metavar="STEP", help="Default: the run's best checkpoint.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest turn in tokens, thoughts included.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 takes the most likely token each time.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Total probability of the tokens to sample.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Repeats a conversation. Default: chat.seed, or random.")
    ] = None,
    hide_thoughts: Annotated[bool, typer.Option("--hide-thoughts", help="Do not print the chain of thought.")] = False,
    set_: output.Set = None,
    accept_changed_base: output.AcceptChangedBase = False,
) -> None:
    """Chat with a run's checkpoint or with a model.

    Thoughts are dim. If stdout is a pipe, they go to stderr.
    """
    if question is None and not sys.stdin.isatty():
        raise UserError("chat needs a terminal to read from", do='--question "..." asks one question and exits')
    from ossia.workflows.chat import chat as open_chat

    flags = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    changes = [f"chat.{key}={value}" for key, value in flags.items() if value is not None]
    with output.watching() as watch:
        opened = open_chat(
            who, vs_base=vs is output.Against.base, effort=effort, instructions=system, seed=seed,
            checkpoint=checkpoint, overrides=[*(set_ or ()), *changes],
            accept_changed_base=accept_changed_base, on_event=watch,
        )  # fmt: skip
    sessions, like, hide = opened.sessions, opened.like, hide_thoughts
    if question is not None:
        if not _answer(question, sessions, like, hide):
            raise KeyboardInterrupt
        return
    output.err().print(f"{opened.subject.name}, seed {like.seed}. /help lists the commands.", markup=False)
    _loop(sessions, like, hide)
    output.next_step(f"ossia eval {who}" if opened.subject.adapter is None else f"ossia export {who}")


def _loop(sessions: dict[str, Session], like: Request, hide_thoughts: bool) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (gives input() a history and editing keys)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            output.err().print("\n/quit ends the chat")
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            _command(line, sessions)
        elif line:
            _answer(line, sessions, like, hide_thoughts)


def _command(line: str, sessions: dict[str, Session]) -> None:
    word, _, rest = line.partition(" ")
    rest, remarks = rest.strip(), output.err()
    if word == "/new":
        for session in sessions.values():
            session.restart()
        remarks.print("a new conversation")
    elif word == "/system":
        for session in sessions.values():
            session.set_instructions(rest or None)
        remarks.print("instructions set" if rest else "no instructions")
    elif word == "/effort" and rest in EFFORTS:
        for session in sessions.values():
            session.set_effort(rest)
        remarks.print(f"effort {rest}")
    elif word == "/effort":
        remarks.print("/effort low, /effort medium or /effort high")
    elif word == "/help":
        for command, text in SLASH_COMMANDS.items():
            remarks.print(f"{command:<8} {text}", markup=False)
    else:
        close = did_you_mean(word, SLASH_COMMANDS)
        remarks.print(f"there is no command {word}; {f'did you mean {close}?' if close else '/help'}", markup=False)


def _answer(text: str, sessions: dict[str, Session], like: Request, hide_thoughts: bool) -> bool:
    """Print the turn of every session as it is generated. Return False if Ctrl-C stopped it."""
    for name, session in sessions.items():
        printer = _Printer(hide_thoughts)
        if name:
            printer.out.print(f"[bold]{name}[/bold]")
        pieces = session.say(text, like)
        try:
            for piece in pieces:
                printer.show(piece)
        except KeyboardInterrupt:
            pieces.close()
        printer.end()
        reply = session.reply
        if reply is None or reply.finish is None:
            kept = reply is not None and reply.kept
            output.err().print("stopped; the answer so far is kept" if kept else "stopped; the turn is discarded")
            return False
        if reply.finish == "length":
            output.err().print(f"cut off after {reply.tokens} tokens (--max-new-tokens)")
        if any(message.repairs for message in reply.messages):
            output.err().print("the model's Harmony was malformed and has been repaired")
    return True


class _Printer:
    """Prints pieces as they are generated: answers on stdout, thoughts dim on a terminal and else on stderr."""

    def __init__(self, hide_thoughts: bool) -> None:
        self.out = output.out()
        self.aside = self.out if self.out.is_terminal else output.err()
        self.hide_thoughts = hide_thoughts
        self.used: Console | None = None

    def show(self, piece: Piece) -> None:
        if piece.kind == "thought" and self.hide_thoughts:
            return
        console = self.aside if piece.kind == "thought" else self.out
        if piece.first:
            self.end()
        if piece.first and piece.kind == "call":
            self._write(console, f"calls {piece.recipient}: ", "cyan")
        style = {"thought": "dim", "preamble": "italic", "call": "cyan"}.get(piece.kind)
        self._write(console, piece.text, style)
        self.used = console

    def _write(self, console: Console, text: str, style: str | None) -> None:
        """Write a text unchanged, except for control sequences, which a model must not send. rich would expand tabs."""
        from rich.style import Style

        text = _CONTROL.sub("", text)
        plain = style is None or not console.is_terminal or console.no_color
        console.file.write(text if plain else Style.parse(str(style)).render(text))
        console.file.flush()

    def end(self) -> None:
        """Finish the line that is being printed."""
        if self.used is not None:
            self.used.print()
        self.used = None
