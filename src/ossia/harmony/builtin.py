"""The built-in tools that gpt-oss was trained with, `browser` and `python`, in the form that the system message has.

The source of the texts is OpenAI's docs/format.md ("Built-in tools"), in the wording of openai-harmony 0.0.8.
tests/harmony/test_render.py compares them with that library. The model calls these tools within its chain of thought:

    <|start|>assistant<|channel|>analysis to=browser.search code<|message|>{"query": "…"}<|call|>
    <|start|>assistant<|channel|>analysis to=python code<|message|>print(1)<|call|>
"""

from __future__ import annotations

from collections.abc import Iterable

from ossia.errors import UserError, did_you_mean
from ossia.harmony.conversation import ToolDescription, ToolNamespace

_SEARCH = ToolDescription(
    "search",
    "Searches for information related to `query` and displays `topn` results.",
    {
        "type": "object",
        "properties": {
            "query": {"type": "string"},
            "topn": {"type": "number", "default": 10},
            "source": {"type": "string"},
        },
        "required": ["query"],
    },
)

_OPEN = ToolDescription(
    "open",
    "Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, showing `num_lines` lines."
    "\nValid link ids are displayed with the formatting: `【{id}†.*】`."
    "\nIf `cursor` is not provided, the most recent page is implied."
    "\nIf `id` is a string, it is treated as a fully qualified URL associated with `source`."
    "\nIf `loc` is not provided, the viewport will be positioned at the beginning of the document or centered on the "
    "most relevant passage, if available."
    "\nUse this function without `id` to scroll to a new location of an opened page.",
    {
        "type": "object",
        "properties": {
            "id": {"type": ["number", "string"], "default": -1},
            "cursor": {"type": "number", "default": -1},
            "loc": {"type": "number", "default": -1},
            "num_lines": {"type": "number", "default": -1},
            "view_source": {"type": "boolean", "default": False},
            "source": {"type": "string"},
        },
    },
)

_FIND = ToolDescription(
    "find",
    "Finds exact matches of `pattern` in the current page, or the page given by `cursor`.",
    {
        "type": "object",
        "properties": {"pattern": {"type": "string"}, "cursor": {"type": "number", "default": -1}},
        "required": ["pattern"],
    },
)

BROWSER = ToolNamespace(
    "browser",
    (_SEARCH, _OPEN, _FIND),
    "Tool for browsing."
    "\nThe `cursor` appears in brackets before each browsing display: `[{cursor}]`."
    "\nCite information from the tool using the following format:"
    "\n`【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`."
    "\nDo not quote more than 10 words directly from the tool output."
    "\nsources=web (default: web)",
)

PYTHON = ToolNamespace(
    "python",
    description="Use this tool to execute Python code in your chain of thought. The code will not be shown to the "
    "user. This tool should be used for internal reasoning, but not for code that is intended to be visible to the "
    "user (e.g. when creating plots, tables, or files)."
    "\n\nWhen you send a message containing Python code to python, it will be executed in a stateful Jupyter notebook "
    "environment. python will respond with the output of the execution or time out after 120.0 seconds. The drive at "
    "'/mnt/data' can be used to save and persist user files. Internet access for this session is UNKNOWN. Depends on "
    "the cluster.",
)

BUILTIN_TOOLS = {namespace.name: namespace for namespace in (BROWSER, PYTHON)}


def builtin_namespaces(names: Iterable[str]) -> tuple[ToolNamespace, ...]:
    """Return the namespaces with these names, without repetitions.

    Raises:
        UserError: a name is not that of a built-in tool.
    """
    for name in (names := tuple(dict.fromkeys(names))):
        if name not in BUILTIN_TOOLS:
            guess = did_you_mean(str(name), BUILTIN_TOOLS)
            do = f'did you mean "{guess}"?' if guess else f"built-in tools are {', '.join(BUILTIN_TOOLS)}"
            raise UserError(f"There is no built-in tool {name!r}", do=do)
    return tuple(BUILTIN_TOOLS[name] for name in names)
