"""The table of commands. The module of a command is imported when it is called, so that `ossia --help` is fast."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from ossia.errors import UserError, did_you_mean

COMMANDS = {
    "doctor": "Check this machine, and report which recipes fit on it.",
    "recipes": "List, show, copy and document recipes.",
    "fetch": "Download gpt-oss from the hub, and continue interrupted downloads.",
    "data": "Check, show and count conversations before training.",
    "plan": "Estimate the memory, time and disk that a recipe needs.",
    "rehearse": "Measure a few real training steps on a full-size model with random weights.",
    "train": "Fine-tune with LoRA, or resume a run.",
    "eval": "Compare a run with its base on held-out questions.",
    "chat": "Chat with a model or a run in the terminal.",
    "export": "Merge the adapter and write a checkpoint for other programs.",
    "harmony": "Convert chat messages to Harmony tokens, and tokens to messages.",
    "runs": "List and show runs.",
    "make": "Make tiny and synthetic checkpoints for tests and rehearsals.",
    "demo": "Run all stages on a tiny gpt-oss, from data to export.",
}


class LazyGroup(TyperGroup):
    """A group of commands that are listed from the table. Only the module of the called command is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, rest = args[0], args[1:]
        if name not in COMMANDS:
            close = did_you_mean(name, COMMANDS)
            raise UserError(f"there is no command {name!r}", do=f"ossia {close}" if close else "ossia --help")
        module = importlib.import_module(f"ossia.cli.{name}_")
        command = get_command(module.app)
        command.name = name
        return name, command, rest


def build() -> Any:
    """Return the click command of the whole program."""
    app = typer.Typer(
        cls=LazyGroup,
        name="ossia",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich takes more time to draw the help than all other work
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Fine-tune, evaluate, chat with and export gpt-oss on the machine you have.",
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ) -> None:
        pass

    return get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ossia.runs import ossia_version

        print(f"ossia {ossia_version()}")
        raise typer.Exit


def verb(help: str, **settings: Any) -> typer.Typer:
    """Return the Typer app of a command, with the settings that all commands have in common."""
    return typer.Typer(
        help=help,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )
