"""The source distribution of openai-harmony 0.0.8, with its golden files and tests. It is downloaded once.

It comes from pip's configured package index, and its hash is checked. `pip download` cannot fetch it. It would build
the package to read its metadata, and the build needs Rust.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path

from ossia.files import cache_folder

NAME = "openai_harmony-0.0.8"
SHA256 = "6e43f98e6c242fa2de6f8ea12eab24af63fa2ed3e89c06341fb9d92632c5cbdf"
_SECONDS = 30


class UnavailableError(Exception):
    """The source distribution is not available. The message gives the reason."""


def folder() -> Path:
    """Return the folder of the unpacked source distribution.

    Raises:
        UnavailableError: it is not in the cache and cannot be downloaded.
    """
    target = cache_folder() / f"{NAME}-{SHA256[:12]}"
    if not target.is_dir():
        packed = _download()
        draft = target.with_name(f"{target.name}-draft-{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        archive = draft / "packed.tar.gz"
        archive.write_bytes(packed)
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            tar.extractall(draft)
        try:
            draft.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(draft, ignore_errors=True)
    return target / NAME


def _download() -> bytes:
    page = f"{_index().rstrip('/')}/openai-harmony/"
    try:
        links = re.findall(r'href="([^"]+)"', _get(page).decode())
        found = [link for link in links if link.partition("#")[0].endswith(f"{NAME}.tar.gz")]
        if not found:
            raise UnavailableError(f"the package index has no {NAME}.tar.gz")
        packed = _get(urllib.parse.urljoin(page, found[0].partition("#")[0]))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{NAME}.tar.gz cannot be downloaded: {error}") from error
    digest = hashlib.sha256(packed).hexdigest()
    assert digest == SHA256, f"{NAME}.tar.gz has SHA-256 {digest}, not {SHA256}"
    return packed


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
        return bytes(answer.read())


def _index() -> str:
    """Return the URL of pip's configured package index, or else of pip's default, which its help states."""
    if os.environ.get("PIP_NO_INDEX"):
        raise UnavailableError("pip is set to use no package index")
    configured = os.environ.get("PIP_INDEX_URL") or _pip("config", "get", "global.index-url").strip()
    if configured:
        return configured
    stated = re.search(r"--index-url.*?\(default\s+(\S+?)\)", _pip("install", "--help"), re.DOTALL)
    if stated is None:
        raise UnavailableError("pip states no default package index")
    return stated[1]


def _pip(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""
