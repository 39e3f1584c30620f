"""The workflow that opens a conversation with a run, an adapter or a model, alone or beside its base."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ossia.config import Effort
from ossia.errors import UserError
from ossia.events import OnEvent, counting, ignore

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
    on_event: OnEvent = ignore,
) -> OpenChat:
    """Load the model and return an open conversation.

    Args:
        reference: a run, checkpoint, adapter or model, as in `ossia.generate.subject.open_subject`.
        vs_base: whether the base model answers too, before the tuned model.
        effort: the reasoning effort. By default it is that of the run's recipe.
        instructions: the developer message.
        seed: the seed that repeats a conversation. By default it is the recipe's `chat.seed`, else a random one.
        checkpoint: the step of a run's checkpoint. By default it is the run's best checkpoint.
        overrides: `section.key=value`, applied to the recipe. Its section `chat` has the settings of sampling.
        on_event: called with progress.

    Raises:
        UserError: nothing matches the reference, or `vs_base` is set for a model without an adapter.
    """
    from ossia.generate.engine import BASE_WEIGHTS
    from ossia.generate.session import Session
    from ossia.generate.subject import open_subject, request_of

    subject = open_subject(reference, checkpoint=checkpoint, overrides=overrides)
    if vs_base and subject.adapter is None:
        raise UserError("this model has no adapter to compare with its base", where=subject.name, do="omit --vs base")
    vocabulary, system = subject.vocabulary(), subject.system()
    with counting(on_event, "loading the model"):
        engine = subject.engine()
    sessions = {"": Session(engine, vocabulary, system=system)}
    if vs_base:
        sessions = {"base": Session(engine, vocabulary, system=system, adapter=BASE_WEIGHTS), "tuned": sessions[""]}
    for session in sessions.values():
        session.set_instructions(instructions)
        if effort is not None:
            session.set_effort(effort)
    settings = subject.recipe.chat
    chosen = next((given for given in (seed, settings.seed) if given is not None), secrets.randbits(31))
    return OpenChat(subject, sessions, request_of(settings, chosen))
