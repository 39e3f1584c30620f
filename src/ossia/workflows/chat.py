"""The workflow that opens a conversation with a run, an adapter or a model, alone or beside its base."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ossia.config import Effort
from ossia.errors import UserError
from ossia.events import Note, OnEvent, counting, ignore

if TYPE_CHECKING:
    from ossia.generate.engine import Request
    from ossia.generate.session import Session
    from ossia.generate.subject import Subject


@dataclass(frozen=True)
class OpenChat:
    """An open conversation. `Session.say(text, like)` of each session answers a message."""

    subject: Subject
    sessions: dict[str, Session]
    """The sessions by name: "base" and "tuned", or an empty name for a single session."""
    like: Request
    """The request of a turn without its prompt: sampling, length and seed."""


def chat(
    reference: str,
    *,
    vs_base: bool = False,
    effort: Effort | None = None,
    instructions: str | None = None,
    seed: int | None = None,
    checkpoint: int | None = None,
    overrides: Iterable[str] = (),
    accept_changed_base: bool = False,
    on_event: OnEvent = ignore,
) -> OpenChat:
    """Load the model and return an open conversation.

    Args:
        reference: a run, checkpoint, adapter or model, as in `ossia.generate.subject.open_subject`.
        vs_base: whether the base model answers too, before the tuned model.
        effort: the reasoning effort. By default it is that of the run's recipe.
        instructions: the developer message.
        seed: repeats a conversation; by default the recipe's `chat.seed`, else a new one.
        checkpoint: step of a run's checkpoint; by default its best one.
        overrides: `section.key=value`, on top of the recipe; its section `chat` says how to sample.
        accept_changed_base: go on, with a note, although the base is not the one that the adapter was trained on.
        on_event: called with notes and progress.

    Raises:
        UserError: nothing matches the reference, or `vs_base` is set for a model without an adapter.
    """
    from ossia.generate.engine import BASE_WEIGHTS
    from ossia.generate.session import Session
    from ossia.generate.subject import open_subject, request_of

    subject = open_subject(reference, checkpoint=checkpoint, overrides=overrides)
    if vs_base and subject.adapter is None:
        raise UserError(
            "this model has no adapter to compare with its base", where=subject.name, do="leave --vs base out"
        )
    for message in subject.check(accept_changed_base=accept_changed_base, on_event=on_event):
        on_event(Note(level="warning", message=message))
    vocabulary, system = subject.vocabulary(), subject.system()
    with counting(on_event, "loading the model"):
        engine = subject.engine()
    order = subject.recipe.data.header_order

    def opened(adapter: str | None) -> Session:
        return Session(engine, vocabulary, system=system, adapter=adapter, order=order)

    sessions = {"base": opened(BASE_WEIGHTS), "tuned": opened(None)} if vs_base else {"": opened(None)}
    for session in sessions.values():
        session.set_instructions(instructions)
        if effort is not None:
            session.set_effort(effort)
    settings = subject.recipe.chat
    chosen = next((given for given in (seed, settings.seed) if given is not None), secrets.randbits(31))
    return OpenChat(subject, sessions, request_of(settings, chosen))
