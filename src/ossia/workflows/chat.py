"""Open a conversation with a run, an adapter or a model, alone or beside its base."""

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
    """An open conversation. Each session answers what it is told by `Session.say(text, like)`."""

    subject: Subject
    sessions: dict[str, Session]
    """By the name of the answerer: base and tuned, or an empty name for a single one."""
    like: Request
    """How a turn is generated: the request of a turn, without its prompt."""


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
        reference: a run, checkpoint, adapter or model, see `ossia.generate.subject.open_subject`.
        vs_base: the base model answers too, before the tuned one.
        effort: reasoning effort; by default the run's.
        instructions: the developer message.
        seed: repeats a conversation; by default the recipe's `chat.seed`, else a new one.
        checkpoint: step of a run's checkpoint; by default its best one.
        overrides: `section.key=value`, on top of the recipe; its section `chat` says how to sample.
        accept_changed_base: go on although the base is not the one that the adapter was trained on; it is recorded.
        on_event: called with notes and progress.

    Raises:
        UserError: nothing of that name, or a base is asked for where there is none.
    """
    from ossia.generate.engine import BASE_WEIGHTS
    from ossia.generate.session import Session
    from ossia.generate.subject import open_subject, request_of

    subject = open_subject(reference, checkpoint=checkpoint, overrides=overrides)
    if vs_base and subject.adapter is None:
        raise UserError("only a run can be compared with its base", where=subject.name, do="leave --vs base out")
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
