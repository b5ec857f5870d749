"""Bytes of shards from folders, web servers, object stores and commands: the right ones, or one line that says why not."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from mavil.data.shards.clip_table import CLIPS
from mavil.data.stream import attempts, http_files
from mavil.data.stream.read_ahead import LARGEST_GAP, LARGEST_PIECE
from mavil.data.stream.storage import LocalFolder, Storage, open_storage
from mavil.structs import UserError
from tests.data.stream.remote_sets import OPTIONS, QUICK, files_of, wait_until, whole, write_set
from tests.support.http_server import FileServer, serve
from tests.support.ranks import run_in_ranks

SIZES = {"000000.tar": 5_000_001, "000001.tar": 40_000, "a b%.tar": 300_000}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(3)
    return write_set(tmp_path_factory.mktemp("set"), {n: generator.randbytes(size) for n, size in SIZES.items()})


@pytest.fixture
def server(folder: Path) -> Iterator[FileServer]:
    with serve(files_of(folder)) as state:
        yield state


def assert_equal_reads(storage: Storage, folder: Path) -> None:
    """Sequential passes, reads at random places, and reads over the end give what the files hold."""
    local, generator = LocalFolder(folder), random.Random(1)
    for name in SIZES:
        assert whole(storage, name) == (folder / name).read_bytes()
    for _ in range(25):
        name = generator.choice(list(SIZES))
        offset, size = generator.randrange(SIZES[name] + 1000), generator.choice([1, 700, 200_000])
        assert storage.read(name, offset, size) == local.read(name, offset, size)
    assert storage.read("000001.tar", 39_990, 100) == local.read("000001.tar", 39_990, 100)
    assert storage.read("000001.tar", 50_000, 100) == b""


@pytest.mark.parametrize(("has_ranges", "has_lengths"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_web_server_gives_what_the_files_hold(
    server: FileServer, folder: Path, tmp_path: Path, has_ranges: bool, has_lengths: bool, is_cached: bool
) -> None:
    server.has_ranges, server.has_lengths = has_ranges, has_lengths
    storage = open_storage(server.address, replace(OPTIONS, cache=str(tmp_path) if is_cached else None))
    assert not storage.is_local
    assert_equal_reads(storage, folder)


def test_a_pass_asks_for_every_byte_once(server: FileServer) -> None:
    storage = open_storage(server.address, OPTIONS)
    before, sent = storage.bytes_read, server.bytes_sent
    server.requests.clear()
    whole(storage, "000000.tar")
    assert storage.bytes_read - before == server.bytes_sent - sent == SIZES["000000.tar"]
    assert len(server.requests) < 10  # pieces grow
    assert server.connections <= 2  # one while it was opened, one since


def test_a_jump_is_not_read_through_and_a_gap_is(server: FileServer) -> None:
    storage = open_storage(server.address, OPTIONS)
    before = storage.bytes_read
    server.requests.clear()
    for offset in (100, 2_000_000, 4_000_000):
        storage.read("000000.tar", offset, 300_000)
    assert storage.bytes_read - before == 900_000
    assert server.requests == [("000000.tar", 100), ("000000.tar", 2_000_000), ("000000.tar", 4_000_000)]
    storage.read("000000.tar", 4_300_000 + LARGEST_GAP // 2, 1000)
    assert server.requests[3] == ("000000.tar", 4_300_000)
    wait_until(lambda: len(server.requests) == 5)  # reading goes on forward: what follows is fetched before it is read
    assert storage.bytes_read - before <= 900_000 + LARGEST_GAP + LARGEST_PIECE


def test_a_file_whose_length_nobody_told_ends_where_it_ends(server: FileServer) -> None:
    server.files["extra"] = bytes(range(256)) * 1024  # just one piece
    storage = open_storage(server.address, OPTIONS)
    assert storage.read("extra", 500_000, 1) == b""
    assert storage.read("extra", 0, 262_144) == server.files["extra"]
    assert storage.read("extra", 0, 300_000) == server.files["extra"]


def test_without_ranges_a_shard_is_fetched_once(server: FileServer) -> None:
    server.has_ranges = False
    storage = open_storage(server.address, OPTIONS)
    before = storage.bytes_read
    for offset in (4_000_000, 10, 2_000_000):
        storage.read("000000.tar", offset, 1000)
    assert storage.bytes_read - before == SIZES["000000.tar"]


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "short", "stall", "silent"])
@pytest.mark.parametrize("is_cached", [False, True])
def test_what_fails_twice_is_tried_again(
    server: FileServer, folder: Path, tmp_path: Path, fault: str, is_cached: bool
) -> None:
    storage = open_storage(server.address, replace(QUICK, tries=6, cache=str(tmp_path) if is_cached else None))
    server.faults["000001.tar"] = [fault, fault]
    assert whole(storage, "000001.tar") == (folder / "000001.tar").read_bytes()
    assert not server.faults["000001.tar"]


@pytest.mark.parametrize(
    ("fault", "seconds", "message"),
    [
        (
            "500",
            5.0,
            "the server answered 500 Internal Server Error, 3 tries: check the server or raise data.remote.tries",
        ),
        ("reset", 5.0, r"the connection failed \(.*reset.*\), 3 tries: check the server"),
        ("short", 5.0, r"the connection failed \(.*\), 3 tries: check the server"),
        ("stall", 0.15, "no answer for 0.15 s, 3 tries: check the server or raise data.remote.timeout_seconds"),
        ("silent", 0.15, "no answer for 0.15 s, 3 tries: check the server or raise data.remote.timeout_seconds"),
    ],
)
def test_what_always_fails_ends_with_one_line(server: FileServer, fault: str, seconds: float, message: str) -> None:
    storage = open_storage(server.address, replace(OPTIONS, timeout_seconds=seconds))
    server.requests.clear()
    server.faults["000001.tar"] = [fault] * 9
    with pytest.raises(UserError, match=f"^{server.address}/000001.tar: {message}") as caught:
        whole(storage, "000001.tar")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == OPTIONS.tries
    server.faults.clear()
    assert len(whole(storage, "000001.tar")) == SIZES["000001.tar"]


def test_a_trickle_does_not_hold_anybody_up(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_files, "SLOWNESS", 1.0)
    storage = open_storage(server.address, replace(OPTIONS, tries=2, timeout_seconds=0.3))
    server.faults["000001.tar"] = ["slowest"] * 2
    with pytest.raises(UserError, match=r"only \d+ bytes came in 0.3 s, 2 tries"):
        storage.read("000001.tar", 0, 100)


@pytest.mark.parametrize(
    ("status", "message"), [("404", r"not found \(404 Not Found\)"), ("403", "access denied"), ("400", "answered 400")]
)
def test_what_no_try_can_change_fails_at_once(server: FileServer, status: str, message: str) -> None:
    storage = open_storage(server.address, OPTIONS)
    server.requests.clear()
    server.faults["000001.tar"] = [status]
    with pytest.raises(UserError, match=f"^{server.address}/000001.tar: .*{message}.*: check"):
        storage.read("000001.tar", 0, 10)
    assert len(server.requests) == 1


def test_no_server_and_a_changed_shard_are_errors_of_one_line(server: FileServer) -> None:
    with pytest.raises(UserError, match=r"index.json: the connection failed \(.*refused.*\), 3 tries: check"):
        open_storage("http://127.0.0.1:1/data", OPTIONS)
    storage = open_storage(server.address, OPTIONS)
    server.files["000001.tar"] = server.files["000001.tar"][:-7]
    with pytest.raises(UserError, match="it ends 7 bytes before the place that the index says, 3 tries"):
        whole(storage, "000001.tar")


def test_pauses_grow_and_a_server_may_ask_for_longer_ones(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(attempts, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    monkeypatch.setattr(attempts, "FIRST_PAUSE_SECONDS", 1.0)
    server.faults["index.json"] = ["500"] * 8
    open_storage(server.address, replace(OPTIONS, tries=9))
    for pause, longest in zip(pauses, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert longest / 2 <= pause <= longest
    server.faults["index.json"], server.retry_after = ["429"], "7"
    open_storage(server.address, OPTIONS)
    assert pauses[8:] == [7]


def test_retries_are_logged_but_not_each(
    server: FileServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "_warnings", attempts._RetryWarnings())
    server.faults["index.json"] = ["500", "503"]
    open_storage(server.address, OPTIONS)
    assert [record.getMessage().partition("; ")[0] for record in caplog.records] == [
        f"{server.address}/index.json: the server answered 500 Internal Server Error"
    ]


def test_passwords_and_tokens_are_sent_and_never_shown(server: FileServer) -> None:
    address = server.address.replace("://", "://me:pass%20word@") + "/?token=secret"
    storage = open_storage(address, OPTIONS)
    storage.read("000001.tar", 0, 10)
    assert server.headers[-1]["authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    server.faults["000000.tar"] = ["500"] * 3
    with pytest.raises(UserError) as caught:
        storage.read("000000.tar", 0, 10)
    assert str(caught.value).startswith(f"{server.address}/000000.tar: the server answered 500")
    assert "pass" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert storage.location == server.address


# Object stores: memory:// and file:// stand for them; there is no server for s3:// here.


class Hanging(MemoryFileSystem):
    """Answers the first requests for shards after a while that no test waits for."""

    protocol = "hanging"
    num_hangs = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("hanging://"))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: object) -> bytes:
        if path.endswith(".tar") and Hanging.num_hangs:
            Hanging.num_hangs -= 1
            time.sleep(5)
        return super().cat_file(path, start=start, end=end)


def test_object_stores_give_what_the_files_hold(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, data in files_of(folder).items():
        memory.pipe_file(f"/bucket/set/{name}", data)
    storage = open_storage("memory://bucket/set/", OPTIONS)
    assert_equal_reads(storage, folder)
    before = storage.bytes_read
    whole(storage, "000000.tar")
    assert storage.bytes_read - before == SIZES["000000.tar"]
    assert_equal_reads(open_storage(f"file://{folder}", OPTIONS), folder)
    memory.rm_file("/bucket/set/000001.tar")
    with pytest.raises(UserError, match=r"^memory://bucket/set/000001.tar: not found \(FileNotFoundError"):
        storage.read("000001.tar", 0, 10)


class ReadingAhead(fsspec.AbstractFileSystem):
    """Has no ``cat_file`` of its own, as ``hf://``: a file is opened for it, which by default reads ahead."""

    protocol = "reading-ahead"
    root = ""
    num_fetched = 0

    def info(self, path: str, **options: object) -> dict:
        return {"name": path, "size": os.stat(f"{self.root}/{Path(path).name}").st_size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **options: object) -> AbstractBufferedFile:
        return OpenedFile(self, path, mode, **options)


class OpenedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        ReadingAhead.num_fetched += end - start
        return LocalFolder(Path(ReadingAhead.root)).read(Path(self.path).name, start, end - start)


def test_what_a_back_end_would_read_ahead_is_not_read_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("reading-ahead", ReadingAhead, clobber=True)
    monkeypatch.setattr(ReadingAhead, "root", str(folder))
    storage = open_storage("reading-ahead://set", OPTIONS)
    ReadingAhead.num_fetched = 0
    assert whole(storage, "000000.tar") == (folder / "000000.tar").read_bytes()
    assert ReadingAhead.num_fetched == SIZES["000000.tar"]


def test_an_object_store_that_hangs_is_noticed(folder: Path) -> None:
    fsspec.register_implementation("hanging", Hanging, clobber=True)
    for name, data in files_of(folder).items():
        Hanging().pipe_file(f"/set/{name}", data)
    storage = open_storage("hanging://set", replace(OPTIONS, tries=6, timeout_seconds=0.1))
    Hanging.num_hangs = 2
    assert whole(storage, "000001.tar") == (folder / "000001.tar").read_bytes()
    Hanging.num_hangs = 20
    with pytest.raises(UserError, match=r"no answer for 0.1 s, 6 tries: .*data.remote.timeout_seconds"):
        storage.read("000000.tar", 0, 10)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("missing-package://a", "Install no_such_package \\(a package of its own"),
        ("nothing://a", "no address fsspec can open"),
        ("simplecache::s3://a", "chained addresses are not supported"),
        ("s3://a::http://b", "chained addresses are not supported"),
        ("https:///data", "names no server"),
        ("http://[::1/data", "no address"),
        ("s3://", "names no place"),
    ],
)
def test_addresses_that_cannot_be_opened(address: str, message: str) -> None:
    fsspec.register_implementation(
        "missing-package", "no_such_package.System", clobber=True, errtxt="Install no_such_package"
    )
    with pytest.raises(UserError, match=message):
        open_storage(address, OPTIONS)


# Commands


def piped(folder: Path, **options: object) -> Storage:
    return open_storage(f"pipe:cat {folder}/{{name}}", replace(OPTIONS, allow_shell=True, **options))


def test_commands_run_only_when_allowed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data.remote.allow_shell=true"):
        open_storage(f"pipe:touch {tmp_path}/ran; cat {folder}/{{name}}", OPTIONS)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"must contain \{name\}"):
        open_storage("pipe:cat index.json", replace(OPTIONS, allow_shell=True))
    storage = piped(folder, tries=1)
    for name in ("000000.tar", "000001.tar"):
        assert whole(storage, name) == (folder / name).read_bytes()
    for offset in (1_000_000, 4_500_000, 100):  # forward over a jump, then back
        assert storage.read("000000.tar", offset, 999) == LocalFolder(folder).read("000000.tar", offset, 999)


def test_a_command_that_fails_or_hangs_is_a_failed_try(folder: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, allow_shell=True)
    command = f"pipe:echo x >> {tmp_path}/tries; head -c 100 {folder}/{{name}}; echo no such bucket >&2; exit 7"
    with pytest.raises(UserError, match="the command ended with status 7: no such bucket, 3 tries: check"):
        open_storage(command, options)
    assert (tmp_path / "tries").read_text() == "x\n" * 3
    with pytest.raises(UserError, match=r"no answer for 0.15 s, 3 tries"):
        open_storage(f"pipe:sleep 30 | cat {folder}/{{name}} -", replace(options, timeout_seconds=0.15))
    heals = f"pipe:test -e {tmp_path}/{{name}} || {{ touch {tmp_path}/{{name}}; exit 1; }}; cat {folder}/{{name}}"
    assert whole(open_storage(heals, options), "000001.tar") == (folder / "000001.tar").read_bytes()


@pytest.mark.parametrize("name", ["a b%.tar", "$(touch {ran}).tar", "a;touch {ran}", "`touch {ran}`", "'"])
@pytest.mark.parametrize("template", ["cat {folder}/{{name}}", "sh -c 'cat {folder}/{{name}}'"])
def test_names_never_become_commands(folder: Path, tmp_path: Path, name: str, template: str) -> None:
    ran = tmp_path / "ran"
    name = name.format(ran="ran")  # no slash: those are refused everywhere
    storage = open_storage(f"pipe:cd {tmp_path}; {template.format(folder=folder)}", replace(OPTIONS, allow_shell=True))
    with pytest.raises(UserError, match="is not put into a command"):
        storage.read(name, 0, 10)
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".", "", "-rf", "s3://x", "pipe:x", "a\\b", "a\nb"]
)
def test_names_are_plain_file_names(folder: Path, name: str) -> None:
    for storage in (LocalFolder(folder), piped(folder), open_storage(f"file://{folder}", OPTIONS)):
        for read in (lambda: storage.read(name, 0, 1), lambda: storage.fetch(name)):  # noqa: B023
            with pytest.raises(UserError, match="no plain file name"):
                read()


# Processes


def read_copy(storage: Storage, names: list[str]) -> tuple[list[str], int]:
    return [hashlib.sha256(whole(storage, name)).hexdigest() for name in names], storage.bytes_read


def test_a_storage_goes_to_other_processes_without_its_connections(server: FileServer, folder: Path) -> None:
    storage = open_storage(server.address, OPTIONS)
    storage.read("000000.tar", 0, 2_000_000)  # with a request on its way
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SIZES]
    for copy, bytes_read in run_in_ranks(read_copy, storage, list(SIZES)):
        assert (copy, bytes_read) == (digests, sum(SIZES.values()))
    assert pickle.loads(pickle.dumps(LocalFolder(folder))).bytes_read == 0


def test_a_fork_begins_with_connections_of_its_own(server: FileServer, folder: Path) -> None:
    storage = open_storage(server.address, OPTIONS)
    storage.read("000000.tar", 0, 2_000_000)
    before = storage._files  # type: ignore[attr-defined]
    storage._pid -= 1  # type: ignore[attr-defined] # as after a fork; a real one may deadlock once torch has threads
    assert storage.read("000000.tar", 5, 100) == LocalFolder(folder).read("000000.tar", 5, 100)
    assert storage._files is not before  # type: ignore[attr-defined]


def test_a_local_folder(folder: Path) -> None:
    storage = open_storage(folder)
    assert storage.is_local
    assert open_storage(str(folder)).location == storage.location == str(folder)
    assert storage.fetch(CLIPS) == folder / CLIPS
    assert storage.read("000001.tar", 39_990, 100) == (folder / "000001.tar").read_bytes()[39_990:]
    assert storage.bytes_read == 10
    with pytest.raises(FileNotFoundError):
        storage.read("gone.tar", 0, 1)
    with pytest.raises(FileNotFoundError, match="no such file"):
        storage.fetch("gone.json")
