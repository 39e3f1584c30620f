"""Comparison of chat templates from other sources with Ossia's rendering, on the rows of a data set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ossia.data.compile import Compiling
from ossia.errors import UserError
from ossia.harmony.template import Comparison, compare
from ossia.harmony.to_openai import chat_form
from ossia.harmony.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True)
class ForeignTemplate:
    """The Jinja text of a chat template, and a name of it for messages."""

    text: str
    name: str


def read_template(named: str) -> ForeignTemplate:
    """Return the chat template of a .jinja file or of a checkpoint (folder or hub id).

    Raises:
        UserError: there is no template, or the file is not UTF-8 or not valid Jinja.
    """
    path = Path(named)
    if path.is_file() and path.suffix != ".json":
        return ForeignTemplate(_checked(path), path.name)
    if path.suffix in (".jinja", ".j2", ".json"):
        raise UserError("No such template", where=named, do="name a .jinja file, or a checkpoint's folder or id")
    if not path.is_dir():
        from ossia.checkpoint.locate import locate

        path = locate(named)
    if (path / "chat_template.jinja").is_file():
        return ForeignTemplate(_checked(path / "chat_template.jinja"), f"the template of {path.name}")
    config = path / "tokenizer_config.json"
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.is_file() else None
    if isinstance(template, list):  # several, by name
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str):
        raise UserError("the checkpoint has no chat template", where=str(path), do="name a .jinja file")
    return ForeignTemplate(template, f"the template of {path.name}")


def compare_with_template(done: Compiling, template: ForeignTemplate, vocabulary: Vocabulary) -> Comparison:
    """Return the differences between the tokens of a template and of Ossia's renderer, for one usable row."""
    assert done.conversation is not None
    return compare(*chat_form(done.conversation), template.text, vocabulary)


def _checked(path: Path) -> str:
    """Return the text of a template file. Raises UserError if it does not compile."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        text = path.read_text(encoding="utf-8")
        extensions = ["jinja2.ext.loopcontrols"]
        # {% generation %} is an extension of transformers. It marks text and does not change the rendering.
        plain = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        ImmutableSandboxedEnvironment(extensions=extensions).parse(plain)
    except UnicodeDecodeError as error:
        raise UserError("the template is not UTF-8", where=str(path), why=str(error)) from error
    except TemplateSyntaxError as error:
        raise UserError(f"the template is not valid Jinja: {error.message}", where=f"{path}:{error.lineno}") from error
    return text
