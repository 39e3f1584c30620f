"""The published weights, fetched from the Hugging Face hub: only the files that are used, resumable, verified.

huggingface_hub provides the connection (endpoint, token, proxies, redirects). The bytes are received here. Since
version 2 its own downloads start a file from zero after an interruption, and a file has five gigabytes. A file is
received as `NAME.HASH.part`, and the next attempt continues it. It gets its name when its hash equals the hub's.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

from ossia.checkpoint.reader import (
    INDEX,
    SIDE_FILES,
    CheckpointReader,
    not_mxfp4,
    read_json,
    read_shape,
)
from ossia.checkpoint.writer import ByteProgress
from ossia.errors import DoesNotFitError, OssiaError, UserError
from ossia.files import cache_folder, check_disk, write_json

ALIASES = {
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "20b": "openai/gpt-oss-20b",
    "120b": "openai/gpt-oss-120b",
}
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_RECORD = ".hub.json"
_ATTEMPTS = 5
_PAUSE_SECONDS = 1.0
_WORKERS = 4


@dataclass(frozen=True)
class Remote:
    """A file on the hub.

    `size` is in bytes. `digest` is "sha256:..." for large files, "git:..." (a git blob's SHA-1) for small ones.
    """

    name: str
    size: int
    digest: str


def repo_id(name: str) -> str:
    """Return the hub's `owner/name` for such a name or an alias such as "gpt-oss-20b".

    Raises:
        UserError: it is neither.
    """
    name = ALIASES.get(name.lower(), name)
    if not _REPO.fullmatch(name):
        do = f"use {', '.join(sorted(ALIASES))}, or OWNER/NAME"
        raise UserError(f"{name!r} is not the name of a model on the hub", do=do)
    return name


def models_folder() -> Path:
    """Return the default folder of fetched models: `models` in Ossia's cache folder ($OSSIA_CACHE)."""
    return cache_folder() / "models"


def local(name: str) -> Path | None:
    """Return the folder of a complete model on this machine, or None.

    It was fetched by Ossia, or it lies in huggingface_hub's cache.
    """
    if name.lower() not in ALIASES and not _REPO.fullmatch(name):
        return None
    repo = repo_id(name)
    candidates = [_default_folder(repo)]
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "original/config.json"):
        cached = try_to_load_from_cache(repo, name)
        if isinstance(cached, str):
            candidates.append(Path(cached).parent)
    return next((folder for folder in candidates if _is_complete(folder)), None)


def fetch(
    name: str,
    folder: Path | str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    endpoint: str | None = None,
    progress: ByteProgress | None = None,
) -> Path:
    """Fetch a model, continuing an earlier attempt, and return its checked folder.

    Args:
        name: "gpt-oss-20b", "gpt-oss-120b" or "owner/name".
        folder: the target; by default a folder of Ossia's cache, unless huggingface_hub's cache already has the model.
        revision: branch, tag or commit; by default the newest.
        token: by default $HF_TOKEN or the one that `hf auth login` saved. gpt-oss itself needs none.
        offline: use only files on this machine; by default the value of $HF_HUB_OFFLINE.
        endpoint: the hub's address; by default $HF_ENDPOINT or huggingface.co.
        progress: called for received bytes, from one thread at a time.

    Raises:
        UserError: unknown model, no access, offline and not on this machine, or not gpt-oss in MXFP4.
        OssiaError: the network failed, for a file five times. The next call continues from the received bytes.
        DoesNotFitError: the disk is too small, which is checked before the download, or it became full.
    """
    from huggingface_hub import constants

    repo = repo_id(name)
    offline = constants.HF_HUB_OFFLINE if offline is None else offline
    if offline:
        here = local(repo) if folder is None else Path(folder)
        if here is not None and _is_complete(here):
            return here
        raise UserError(
            f"{repo} is not on this machine, and the network is off (offline mode)",
            do=f"run `ossia fetch {name}` once with network access, without HF_HUB_OFFLINE",
        )
    if folder is None and revision is None and (cached := local(repo)) not in (None, _default_folder(repo)):
        return cached
    target = Path(folder) if folder is not None else _default_folder(repo)
    commit, remotes = _listing(repo, revision, token, endpoint)
    _Download(repo, commit, target, token, endpoint, progress).run(remotes)
    CheckpointReader(target).check()
    return target


def _default_folder(repo: str) -> Path:
    return models_folder() / repo.replace("/", "--")


def _is_complete(folder: Path) -> bool:
    try:
        CheckpointReader(folder).check()
    except UserError:
        return False
    return True


def _listing(repo: str, revision: str | None, token: str | None, endpoint: str | None) -> tuple[str, list[Remote]]:
    """Return the commit, and the files of the Hugging Face layout (without `original/` and `metal/`)."""
    from huggingface_hub import HfApi, errors

    api = HfApi(endpoint=endpoint, token=token, library_name="ossia")
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=30)
    except (OSError, errors.HTTPError, errors.HFValidationError) as error:
        raise _explained(error, repo) from error
    wanted = []
    for file in info.siblings or []:
        if file.rfilename in (*SIDE_FILES, INDEX) or _WEIGHTS.fullmatch(file.rfilename):
            digest = f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"
            wanted.append(Remote(file.rfilename, file.size or 0, digest))
    names = {remote.name for remote in wanted}
    if "config.json" not in names or not any(_WEIGHTS.fullmatch(name) for name in names):
        do = "use a model in safetensors format, such as openai/gpt-oss-20b"
        raise UserError(f"{repo} has no config.json with safetensors weights beside it", do=do)
    return info.sha or revision or "main", wanted


class _Download:
    """The download of one model into a folder."""

    def __init__(
        self,
        repo: str,
        commit: str,
        folder: Path,
        token: str | None,
        endpoint: str | None,
        progress: ByteProgress | None,
    ) -> None:
        self.repo, self.commit, self.folder = repo, commit, folder
        self.token, self.endpoint, self.progress = token, endpoint, progress
        self.received, self.total = 0, 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._verified: dict[str, str] = {}

    def run(self, remotes: list[Remote]) -> None:
        """Fetch the missing files. Small files come first, so that a model that is not gpt-oss is noticed at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._verified = self._read_record()
        self.total = sum(remote.size for remote in remotes)
        missing = [remote for remote in remotes if not self._is_here(remote)]
        self.received = self.total - sum(remote.size for remote in missing) + sum(map(self._part_size, missing))
        check_disk(self.folder, self.total - self.received, f"the rest of {self.repo}")
        for remote in missing:
            if not _WEIGHTS.fullmatch(remote.name):
                self._file(remote)
        _check_config(self.folder)
        with ThreadPoolExecutor(_WORKERS) as pool:
            weights = [remote for remote in missing if _WEIGHTS.fullmatch(remote.name)]
            try:
                for future in as_completed([pool.submit(self._file, remote) for remote in weights]):
                    future.result()
            except BaseException:
                self._stop.set()
                raise

    def _file(self, remote: Remote) -> None:
        """Receive one file and verify it. Try again when the connection breaks."""
        from huggingface_hub import errors

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._receive(remote)
                break
            except (OSError, errors.HTTPError) as error:
                explained = _explained(error, self.repo)
                if attempt == _ATTEMPTS or not isinstance(explained, _UnreachableError) or self._stop.is_set():
                    raise explained from error
                self._stop.wait(_PAUSE_SECONDS * 2 ** (attempt - 1))
        part = self._part(remote)
        if _digest(part, remote) != remote.digest:
            part.unlink()
            raise UserError(
                f"{remote.name} arrived damaged",
                where=str(self.folder),
                why="its hash is not the one the hub gives",
                do="run the same command again",
            )
        part.replace(self.folder / remote.name)
        with self._lock:
            self._verified[remote.name] = remote.digest
            record = {"repo": self.repo, "revision": self.commit, "files": self._verified}
            write_json(self.folder / _RECORD, record)

    def _receive(self, remote: Remote) -> None:
        """Append the missing bytes to the partial file."""
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        part, start = self._part(remote), self._part_size(remote)
        if start == remote.size:
            part.touch()
            return
        url = hf_hub_url(self.repo, remote.name, revision=self.commit, endpoint=self.endpoint)
        headers = build_hf_headers(token=self.token, library_name="ossia") | {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
            if response.status_code >= 400:
                response.read()
            hf_raise_for_status(response)
            if start and response.status_code != 206:  # the server sends the file from its beginning
                self._count(remote, -start)
                start = 0
            with part.open("ab" if start else "wb") as stream:
                for data in response.iter_bytes():
                    if self._stop.is_set():
                        raise InterruptedError("another file failed")
                    stream.write(data)
                    self._count(remote, len(data))
        if part.stat().st_size != remote.size:
            raise ConnectionError(f"{part.stat().st_size} of {remote.size} bytes arrived")

    def _count(self, remote: Remote, size: int) -> None:
        with self._lock:
            self.received += size
            if self.progress is not None:
                self.progress(self.received, self.total, remote.name)

    def _part(self, remote: Remote) -> Path:
        """Return the partial file. Its name holds the hash, so that a part of another revision is not continued."""
        return self.folder / f"{remote.name}.{remote.digest.partition(':')[2][:12]}.part"

    def _part_size(self, remote: Remote) -> int:
        part = self._part(remote)
        size = part.stat().st_size if part.exists() else 0
        return size if size <= remote.size else 0

    def _is_here(self, remote: Remote) -> bool:
        file = self.folder / remote.name
        if not file.is_file() or file.stat().st_size != remote.size:
            return False
        if self._verified.get(remote.name) != remote.digest and _digest(file, remote) != remote.digest:
            return False
        self._verified[remote.name] = remote.digest
        return True

    def _read_record(self) -> dict[str, str]:
        """Return the hashes of files that were verified after they arrived, so that they are not verified again."""
        try:
            files: dict[str, Any] = json.loads((self.folder / _RECORD).read_text(encoding="utf-8"))["files"]
            return {name: str(digest) for name, digest in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _check_config(folder: Path) -> None:
    """Raise UserError if the weights are not gpt-oss's in MXFP4. Called before they are fetched."""
    read_shape(folder)
    quantisation = read_json(folder / "config.json").get("quantization_config") or {}
    if quantisation.get("quant_method") != "mxfp4":
        raise not_mxfp4(str(folder / "config.json"))


def _digest(file: Path, remote: Remote) -> str:
    kind = remote.digest.partition(":")[0]
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as stream:
        while data := stream.read(2**22):
            digest.update(data)
    return f"{kind}:{digest.hexdigest()}"


class _UnreachableError(OssiaError):
    """The connection failed; another attempt may succeed."""


def _explained(error: Exception, repo: str) -> OssiaError:
    """Return the user-facing error for an error of huggingface_hub, of the connection or of the disk."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError("the network is off (offline mode)", do="unset HF_HUB_OFFLINE")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{repo!r} is not a valid name on the hub", do="use OWNER/NAME")
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repo} has no such revision", do="leave the revision out to use the newest")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        do = f"accept the conditions on the page of {repo}, then set HF_TOKEN or run `hf auth login`"
        return UserError(f"the hub refuses access to {repo}", do=do)
    if status == 401:
        do = "check the spelling; for a private model set HF_TOKEN or run `hf auth login`; remove a token that expired"
        return UserError(f"{repo} does not exist on the hub, or your token may not read it", do=do)
    if status == 404:
        return UserError(f"{repo} does not exist on the hub, or lacks a file", do="check the spelling")
    if isinstance(error, OSError) and error.errno == ENOSPC:
        return DoesNotFitError("the disk is full", do="free some space, then run the same command again to continue")
    return _UnreachableError(
        f"the hub could not be reached for {repo}",
        why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}",
        do="check the network (HTTPS_PROXY, HF_ENDPOINT) and run the same command again; it continues where it stopped",
    )
