"""An engine that says what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ossia.generate.engine import Completion, OnCompletion, Sampling, completion
from ossia.harmony.conversation import Message, answer, thought
from ossia.harmony.render import render_messages
from ossia.harmony.tokenizer.vocabulary import Vocabulary

Script = Callable[[Sequence[int]], Sequence[int]]


class Scripted:
    """Answers each prompt with the ids that `script` gives for it; remembers the prompts and the samplings."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        self.prompts.append(list(prompt))
        self.samplings.append(sampling)
        yield from completion(list(self.script(prompt))[: sampling.max_new_tokens], sampling.stop).ids

    def batch(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, on_progress: OnCompletion | None = None
    ) -> list[Completion]:
        made = [completion(tuple(self.stream(prompt, sampling)), sampling.stop) for prompt in prompts]
        for index in reversed(range(len(made))):
            if on_progress is not None:
                on_progress(index, made[index])
        return made


def turn(vocabulary: Vocabulary, *messages: Message) -> list[int]:
    """What a model samples for these messages: rendered, the answer ended by <|return|>, without <|start|>assistant."""
    return render_messages(messages, vocabulary, stop=True).ids[2:]


def said(vocabulary: Vocabulary, final: str, analysis: str = "") -> list[int]:
    """A turn of a thought, if there is one, and an answer."""
    return turn(vocabulary, *([thought(analysis)] if analysis else []), answer(final))
