"""Shared fixtures. Every test gets a cache folder that the whole session shares and nothing outside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

# Set before anything imports transformers or huggingface_hub, in this process and in the ones that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OSSIA_CACHE", str(Path(tempfile.gettempdir()) / f"ossia-test-cache-{os.getuid()}"))


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    """The offline tokenizer files, built once per session (about ten seconds when the cache is cold)."""
    from ossia.harmony.tokenizer.vocabulary import offline_tokenizer_folder

    return offline_tokenizer_folder()
