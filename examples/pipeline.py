"""Plan, train, evaluate and export from Python: python examples/pipeline.py [section.key=value ...]"""

import sys

import ossia
from ossia import events


def show(event: events.Event) -> None:
    """Print a step or a note. All events are also in the run's events.jsonl."""
    if isinstance(event, events.Step):
        print(f"step {event.step}: loss {event.loss:.3f}")
    elif isinstance(event, events.Note):
        print(event.message)


def main(overrides: list[str]) -> None:
    """Run all stages on the recipe tiny-demo."""
    plan = ossia.plan("tiny-demo", overrides=overrides, measure=False)
    print(f"{plan.verdict}: {plan.memory_needed / 1e9:.1f} GB of memory")
    trained = ossia.train("tiny-demo", overrides=overrides, on_event=show)
    evaluation = ossia.evaluate(trained.run.id, on_event=show)
    for name, value in evaluation.summary().brief().items():
        print(f"{name}: {value}")
    exported = ossia.export(trained.run.id, to="hf")
    print(f"{exported.path} holds the tuned model; its experts: {exported.report['experts']['layout']}")


if __name__ == "__main__":  # the processes that compile the data import this file
    main(sys.argv[1:] or ["train.steps=20", "eval.limit=20"])
