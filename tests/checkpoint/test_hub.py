"""Tests of fetching from a hub. The hub runs in a thread of this process, and huggingface_hub is the real library."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ossia.checkpoint import hub
from ossia.checkpoint.reader import CheckpointReader
from ossia.checkpoint.tiny import MICRO, write_tiny
from ossia.errors import DoesNotFitError, OssiaError, UserError

REPO = "openai/gpt-oss-20b"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The hub's listing and file endpoints for one repository. It redirects large files, as the real hub does."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.repo = REPO
        self.token: str | None = None
        self.ranges = True
        self.cut: dict[str, list[int]] = {}  # for a file, the numbers of bytes after which its next transfers break off
        self.damaged: set[str] = set()
        self.served: list[tuple[str, str | None]] = []  # (file, Range header)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def names(self) -> set[str]:
        return {name for name, _ in self.served}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        repo, resolve = f"/api/models/{self.server.repo}", f"/{self.server.repo}/resolve/{COMMIT}/"
        if path.startswith("/cdn/"):
            self.file(path.removeprefix("/cdn/"))
        elif self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, b"{}")
        elif path in (repo, f"{repo}/revision/main", f"{repo}/revision/{COMMIT}"):
            self.answer(200, json.dumps(self.listing()).encode())
        elif path.startswith(f"{repo}/revision/"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(resolve) and path.endswith(".safetensors"):
            self.answer(302, b"", {"Location": f"{self.server.url}/cdn/{path.removeprefix(resolve)}"})
        elif path.startswith(resolve):
            self.file(path.removeprefix(resolve))
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def listing(self) -> dict[str, Any]:
        siblings: list[dict[str, Any]] = []
        for file in sorted(self.server.folder.rglob("*")):
            if file.is_file():
                data = file.read_bytes()
                entry: dict[str, Any] = {"rfilename": file.relative_to(self.server.folder).as_posix()}
                entry |= {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
                if file.suffix == ".safetensors":
                    digest = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
                siblings.append(entry)
        return {"id": self.server.repo, "sha": COMMIT, "siblings": siblings}

    def file(self, name: str) -> None:
        data, wanted = (self.server.folder / name).read_bytes(), self.headers.get("Range")
        self.server.served.append((name, wanted))
        if name in self.server.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status, headers = 0, 200, {}
        if wanted and self.server.ranges:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        limits = self.server.cut.get(name, [])
        self.answer(status, data[start:], headers, limits.pop(0) if limits else None)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, limit: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:limit])
        self.close_connection = limit is not None


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny(tmp_path_factory.mktemp("hub") / "repo", MICRO, max_shard_bytes=100_000)
    for extra in ("README.md", "original/model.safetensors", "metal/model.bin", "pytorch_model.bin"):
        (folder / extra).parent.mkdir(exist_ok=True)
        (folder / extra).write_bytes(b"not needed")
    assert len(list(folder.glob("model*.safetensors"))) >= 3
    return folder


@pytest.fixture
def server(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("OSSIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_PAUSE_SECONDS", 0.0)
    running = Hub(published)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def shard(published: Path, number: int) -> Path:
    return sorted(published.glob("model*.safetensors"))[number]


def same_weights(left: Path, right: Path) -> bool:
    names = sorted(file.name for file in left.glob("model*"))
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in names)


def test_the_files_that_are_used_arrive_and_no_others(server: Hub, published: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    folder = hub.fetch("gpt-oss-20b", endpoint=server.url, progress=lambda *args: seen.append(args))
    CheckpointReader(folder).check(MICRO)
    assert same_weights(published, folder)
    expected = {file.name for file in published.glob("model*")} | {"config.json", "generation_config.json"}
    assert server.names() == expected
    assert {file.name for file in folder.iterdir()} == expected | {".hub.json"}
    assert seen[-1][0] == seen[-1][1] == sum((folder / name).stat().st_size for name in expected)
    assert json.loads((folder / ".hub.json").read_text())["revision"] == COMMIT
    assert hub.local("20b") == hub.local(REPO) == folder == hub.models_folder() / "openai--gpt-oss-20b"
    assert hub.local("gpt-oss-120b") is None


def test_a_second_fetch_transfers_nothing_and_mends_what_is_damaged(
    server: Hub, published: Path, tmp_path: Path
) -> None:
    folder = hub.fetch(REPO, tmp_path / "m", endpoint=server.url)
    server.served.clear()
    assert hub.fetch(REPO, folder, endpoint=server.url) == folder
    assert server.served == []
    (folder / ".hub.json").unlink()  # without it, the files are hashed again
    hub.fetch(REPO, folder, endpoint=server.url)
    assert server.served == []
    broken = folder / shard(published, 1).name
    broken.write_bytes(broken.read_bytes()[:-1])
    (folder / "config.json").unlink()
    hub.fetch(REPO, folder, endpoint=server.url)
    assert server.names() == {broken.name, "config.json"}
    assert same_weights(published, folder)


def test_a_broken_connection_is_continued_where_it_stopped(server: Hub, published: Path, tmp_path: Path) -> None:
    name = shard(published, 0).name
    server.cut[name] = [1000, 500]
    folder = hub.fetch(REPO, tmp_path / "m", endpoint=server.url)
    assert [wanted for served, wanted in server.served if served == name] == [None, "bytes=1000-", "bytes=1500-"]
    assert same_weights(published, folder)


def test_the_next_run_continues_where_the_last_one_gave_up(server: Hub, published: Path, tmp_path: Path) -> None:
    name = shard(published, 1).name
    server.cut[name] = [700, 0, 0, 0, 0]
    with pytest.raises(
        OssiaError, match=r"could not be reached for openai/gpt-oss-20b(.|\n)*continues where it stopped"
    ):
        hub.fetch(REPO, tmp_path / "m", endpoint=server.url)
    with pytest.raises(UserError):
        CheckpointReader(tmp_path / "m")
    seen: list[int] = []
    server.served.clear()
    folder = hub.fetch(REPO, tmp_path / "m", endpoint=server.url, progress=lambda done, total, _: seen.append(done))
    assert (name, "bytes=700-") in server.served
    assert seen == sorted(seen)
    assert same_weights(published, folder)
    assert not list(folder.glob("*.part"))


def test_a_server_without_ranges_starts_the_file_again(server: Hub, published: Path, tmp_path: Path) -> None:
    server.ranges = False
    server.cut[shard(published, 2).name] = [900]
    seen: list[int] = []
    folder = hub.fetch(REPO, tmp_path / "m", endpoint=server.url, progress=lambda done, total, _: seen.append(done))
    assert same_weights(published, folder)
    assert seen[-1] == sum(file.stat().st_size for file in folder.iterdir() if file.name != ".hub.json")


@pytest.mark.parametrize("extra", [0, 1, 1000])
def test_a_part_that_is_too_long_is_fetched_anew_and_a_whole_one_is_not(
    server: Hub, published: Path, tmp_path: Path, extra: int
) -> None:
    """Another program or the repair of a disk may leave such a file."""
    file, folder = shard(published, 0), tmp_path / "m"
    folder.mkdir()
    whole = file.read_bytes()
    part = folder / f"{file.name}.{hashlib.sha256(whole).hexdigest()[:12]}.part"
    part.write_bytes(whole + b"x" * extra)
    seen: list[int] = []
    hub.fetch(REPO, folder, endpoint=server.url, progress=lambda done, total, _: seen.append(done))
    wanted = [] if extra == 0 else [None]
    assert [asked for served, asked in server.served if served == file.name] == wanted
    assert same_weights(published, folder)
    assert not list(folder.glob("*.part"))
    assert seen == sorted(seen)
    assert seen[-1] == sum(path.stat().st_size for path in folder.iterdir() if path.name != ".hub.json")


def test_damage_on_the_way_is_noticed(server: Hub, published: Path, tmp_path: Path) -> None:
    server.damaged.add(shard(published, 0).name)
    with pytest.raises(UserError, match="arrived damaged"):
        hub.fetch(REPO, tmp_path / "m", endpoint=server.url)
    server.damaged.clear()
    assert same_weights(published, hub.fetch(REPO, tmp_path / "m", endpoint=server.url))


def test_access(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "hf_right"
    for token in (None, "hf_wrong"):
        with pytest.raises(UserError, match="does not exist on the hub, or your token may not read it"):
            hub.fetch(REPO, tmp_path / "a", endpoint=server.url, token=token)
    hub.fetch(REPO, tmp_path / "b", endpoint=server.url, token="hf_right")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub.fetch(REPO, tmp_path / "c", endpoint=server.url)


def test_what_is_not_there_is_named(server: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="openai/gpt-oss-7b does not exist on the hub"):
        hub.fetch("openai/gpt-oss-7b", tmp_path / "m", endpoint=server.url)
    with pytest.raises(UserError, match="no such revision"):
        hub.fetch(REPO, tmp_path / "m", endpoint=server.url, revision="v9")
    with pytest.raises(UserError, match="is not the name of a model"):
        hub.fetch("gpt-oss-7b", tmp_path / "m", endpoint=server.url)
    with pytest.raises(UserError, match="not a valid name"):
        hub.fetch("openai/gpt--oss", tmp_path / "m", endpoint=server.url)
    assert hub.local("gpt-oss-7b") is None
    assert not (tmp_path / "m").exists()


def test_another_architecture_is_refused_before_its_weights_come(server: Hub, published: Path, tmp_path: Path) -> None:
    server.folder = shutil.copytree(published, tmp_path / "repo")
    config = json.loads((server.folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "qwen3"}, "a qwen3 model, not gpt-oss"),
        ({"quantization_config": None}, "not packed MXFP4"),
    ):
        (server.folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            hub.fetch(REPO, tmp_path / "m", endpoint=server.url)
    assert not any(name.endswith(".safetensors") for name in server.names())
    for file in server.folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"no config\.json with safetensors weights"):
        hub.fetch(REPO, tmp_path / "m", endpoint=server.url)


def test_too_small_a_disk_is_noticed_before_the_download(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(DoesNotFitError, match=r"the rest of openai/gpt-oss-20b needs .* GB of disk"):
        hub.fetch(REPO, tmp_path / "m", endpoint=server.url)
    assert server.served == []


def test_no_network(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OssiaError, match="could not be reached"):
        hub.fetch(REPO, tmp_path / "m", endpoint="http://127.0.0.1:9")  # the discard port: no program listens
    with pytest.raises(UserError, match=r"not on this machine, and the network is off"):
        hub.fetch(REPO, endpoint=server.url, offline=True)
    folder = hub.fetch(REPO, endpoint=server.url)
    server.served.clear()
    assert hub.fetch(REPO, offline=True) == folder
    assert hub.fetch(REPO, folder, offline=True) == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.fetch("20b") == folder
    assert server.served == []


def test_a_model_in_huggingface_hubs_own_cache_is_used(server: Hub, published: Path, tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "models--openai--gpt-oss-20b"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = shutil.copytree(published, repo / "snapshots" / COMMIT)
    assert hub.local("20b") == snapshot
    assert hub.fetch("20b", endpoint=server.url) == snapshot
    assert server.served == []
    shard(snapshot, 0).unlink()  # an incomplete model is not used
    assert hub.local("20b") is None
    assert hub.fetch("20b", endpoint=server.url) == hub.models_folder() / "openai--gpt-oss-20b"
