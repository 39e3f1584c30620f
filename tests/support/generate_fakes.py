"""Engines with scripted answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ossia.generate.engine import BASE_WEIGHTS, Completion, Finish, OnCompletion, Request, Token, completion
from ossia.harmony.conversation import Message, answer, thought
from ossia.harmony.render import render_messages
from ossia.harmony.tokenizer.vocabulary import Vocabulary

Script = Callable[[Sequence[int]], Sequence[int]]


class ScriptedStream:
    """A stream of known tokens, with the reason for its end."""

    def __init__(self, ids: Iterator[int], request: Request) -> None:
        self.finish: Finish | None = None
        self._ids, self._request = ids, request

    def __iter__(self) -> Iterator[Token]:
        for token in self._ids:
            if self.finish is not None:
                return
            if token in self._request.stop:
                self.finish = "stop"
            yield Token(token)
        self.finish = self.finish or "length"

    def cancel(self) -> None:
        self.finish = self.finish or "cancelled"


class Scripted:
    """An engine that answers each prompt with the ids that `script` returns for it. It keeps the requests."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[Request] = []

    @property
    def prompts(self) -> list[list[int]]:
        return [list(request.prompt) for request in self.requests]

    def description(self) -> dict[str, Any]:
        return {"dtype": "float32", "device": "script"}

    def ids(self, request: Request) -> Iterator[int]:
        """Yield the ids of a completion. A test may override this method to fail in the middle."""
        yield from completion(list(self.script(request.prompt))[: request.max_new_tokens], request.stop).ids

    def submit(self, request: Request) -> ScriptedStream:
        self.requests.append(request)
        return ScriptedStream(self.ids(request), request)

    def complete(self, requests: Sequence[Request], on_completion: OnCompletion | None = None) -> list[Completion]:
        made = [completion([token.id for token in self.submit(request)], request.stop) for request in requests]
        for index in reversed(range(len(made))):
            if on_completion is not None:
                on_completion(index, made[index])
        return made


class Arms:
    """An engine that passes requests for the base weights to `base` and all others to `tuned`."""

    def __init__(self, base: Scripted, tuned: Scripted) -> None:
        self.base, self.tuned = base, tuned

    def description(self) -> dict[str, Any]:
        return self.tuned.description()

    def _of(self, request: Request) -> Scripted:
        return self.base if request.adapter == BASE_WEIGHTS else self.tuned

    def submit(self, request: Request) -> ScriptedStream:
        return self._of(request).submit(request)

    def complete(self, requests: Sequence[Request], on_completion: OnCompletion | None = None) -> list[Completion]:
        return self._of(requests[0]).complete(requests, on_completion)


def numbered(prompts: Sequence[Sequence[int]], like: Request) -> list[Request]:
    """Return a request for each prompt, each with its own random numbers."""
    return [replace(like, prompt=tuple(prompt), number=number) for number, prompt in enumerate(prompts)]


def turn(vocabulary: Vocabulary, *messages: Message) -> list[int]:
    """Return the ids that a model samples for these messages.

    They begin after <|start|>assistant, and the answer ends with <|return|>.
    """
    return render_messages(messages, vocabulary, stop=True).ids[2:]


def said(vocabulary: Vocabulary, final: str, analysis: str = "") -> list[int]:
    """Return the ids of a turn with an answer and, if it is given, a thought."""
    return turn(vocabulary, *([thought(analysis)] if analysis else []), answer(final))
