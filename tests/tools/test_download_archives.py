"""Archives over a real server on loopback: broken, silent and lying transfers, and archives that want out of their folder."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from torchaudio.datasets import librispeech, speechcommands, voxceleb1

from mavil.data.sources.read import FORMATS
from mavil.structs import UserError
from tests.support.http_server import FileServer, serve
from tests.tools.conftest import Tool
from tools.downloads import catalog, transfer, unpack
from tools.downloads.archives import Place, fetch_archives
from tools.downloads.catalog import Archive, RemoteFile
from tools.downloads.transfer import DownloadError, TransferOptions, fetch_file

DATA = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = TransferOptions(retries=2, timeout_seconds=0.4, first_pause_seconds=0.01)
NO_PAUSE = TransferOptions(retries=0, timeout_seconds=0.4)


@pytest.fixture
def site() -> Iterator[FileServer]:
    with serve({}) as server:
        server.files["data.bin"] = DATA
        yield server


def remote(site: FileServer, sha256: str = SHA256, num_bytes: int | None = len(DATA)) -> RemoteFile:
    return RemoteFile(f"{site.address}/data.bin", sha256, num_bytes)


def test_a_file_is_fetched_checked_and_not_fetched_again(site: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetch_file(remote(site), tmp_path / "data.bin", QUICK, lambda done, total: seen.append((done, total)))
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert seen[0] == (0, len(DATA))
    assert seen[-1] == (len(DATA), len(DATA))
    assert not fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert len(site.requests) == 1
    assert os.listdir(tmp_path) == ["data.bin"]


def test_a_broken_transfer_goes_on_where_it_broke_off(site: FileServer, tmp_path: Path) -> None:
    site.faults["data.bin"] = ["short", "short", "503"]
    fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert [start for _, start in site.requests] == [0, 150_000, 225_000, 225_000]


def test_each_try_that_brings_something_new_gives_all_tries_back(site: FileServer, tmp_path: Path) -> None:
    site.faults["data.bin"] = ["short" for _ in range(7)]
    fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert len(site.requests) == 8


def test_a_killed_run_goes_on(site: FileServer, tmp_path: Path) -> None:
    site.tags["data.bin"] = '"one"'
    site.faults["data.bin"] = ["short"]
    with pytest.raises(DownloadError, match=r"150000 bytes are kept: run the same command to go on"):
        fetch_file(remote(site), tmp_path / "data.bin", NO_PAUSE)
    assert (tmp_path / "data.bin.part").stat().st_size == 150_000
    assert not (tmp_path / "data.bin").exists()
    fetch_file(remote(site), tmp_path / "data.bin", NO_PAUSE)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert site.requests[-1] == ("data.bin", 150_000)
    assert os.listdir(tmp_path) == ["data.bin"]


def test_a_part_of_an_older_file_is_not_glued_to_a_newer_one(site: FileServer, tmp_path: Path) -> None:
    newer = random.Random(1).randbytes(len(DATA))
    site.tags["data.bin"] = '"one"'
    site.faults["data.bin"] = ["short"]
    with pytest.raises(DownloadError):
        fetch_file(remote(site, sha256=""), tmp_path / "data.bin", NO_PAUSE)
    site.tags["data.bin"], site.files["data.bin"] = '"two"', newer
    fetch_file(remote(site, sha256=""), tmp_path / "data.bin", NO_PAUSE)
    assert (tmp_path / "data.bin").read_bytes() == newer


def test_a_server_without_ranges_begins_anew_and_gives_up_in_the_end(site: FileServer, tmp_path: Path) -> None:
    site.has_ranges = False
    site.faults["data.bin"] = ["short", "short"]
    fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    site.faults["data.bin"] = ["short" for _ in range(20)]
    with pytest.raises(DownloadError, match="gave up after 3 tries in a row"):
        fetch_file(remote(site), tmp_path / "again.bin", QUICK)


@pytest.mark.parametrize("is_size_known", [True, False])
def test_a_part_that_is_whole_needs_its_name_only(site: FileServer, tmp_path: Path, is_size_known: bool) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA)
    fetch_file(remote(site, num_bytes=len(DATA) if is_size_known else None), tmp_path / "data.bin", QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert len(site.requests) == (0 if is_size_known else 1)


@pytest.mark.parametrize("fault", ["stall", "slowest"])
def test_a_standstill_is_noticed(site: FileServer, tmp_path: Path, fault: str) -> None:
    site.faults["data.bin"] = [fault]
    begin = time.monotonic()
    fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert len(site.requests) == 2
    assert time.monotonic() - begin < 4  # the server itself would wait 5 s, and trickle for 100 minutes


def test_pauses_grow_and_follow_the_server(site: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(transfer.time, "sleep", pauses.append)
    site.faults["data.bin"], site.retry_after = ["502", "500", "429", "503"], "3"
    fetch_file(remote(site), tmp_path / "data.bin", TransferOptions(retries=4, first_pause_seconds=1))
    assert pauses == [3, 3, 4, 8]


@pytest.mark.parametrize(
    ("status", "words"), [(404, "look at the address"), (403, "asks for a login"), (401, "asks for a login")]
)
def test_what_another_try_would_answer_again_is_not_tried(
    site: FileServer, tmp_path: Path, status: int, words: str
) -> None:
    site.faults["data.bin"] = [str(status)]
    with pytest.raises(DownloadError, match=words) as caught:
        fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert len(site.requests) == 1
    assert "\n" not in str(caught.value)


def test_damage_on_the_way_is_found_and_the_file_never_gets_its_name(site: FileServer, tmp_path: Path) -> None:
    site.files["data.bin"] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(DownloadError, match=f"but {SHA256[:12]}... was published: damaged on the way or changed"):
        fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert os.listdir(tmp_path) == []


def test_a_login_page_in_the_place_of_an_archive_is_not_taken(site: FileServer, tmp_path: Path) -> None:
    site.files["data.bin"] = b"<html>sign in</html>"
    with pytest.raises(DownloadError, match=f"offers 20 bytes, but {len(DATA)} were published"):
        fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert os.listdir(tmp_path) == []


def test_another_file_of_that_name_is_left_alone(site: FileServer, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match="4 bytes, but 300000 were published"):
        fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"


def test_too_little_room_is_told_before_anything_is_written(
    site: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 200_000))
    with pytest.raises(UserError, match=r"0\.0 GB are still to come but only 0\.0 GB are free"):
        fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's disk that is always full")
def test_a_disk_that_fills_up_is_told_in_one_line(site: FileServer, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="cannot be written: No space left on device; make room") as caught:
        fetch_file(remote(site), tmp_path / "data.bin", QUICK)
    assert "\n" not in str(caught.value)


def test_a_password_does_not_follow_a_redirect(site: FileServer, tmp_path: Path) -> None:
    site.redirects["moved"] = f"{site.address.replace('127.0.0.1', 'localhost')}/data.bin"
    options = TransferOptions(headers={"Authorization": "Basic c2VjcmV0"})
    fetch_file(RemoteFile(f"{site.address}/moved", SHA256), tmp_path / "data.bin", options)
    assert [headers.get("authorization") for headers in site.headers] == ["Basic c2VjcmV0", None]


def test_only_web_addresses_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must begin with http"):
        fetch_file(RemoteFile("file:///etc/passwd"), tmp_path / "passwd", QUICK)


def tar_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def split_of(name: str) -> bytes:
    return tar_of(**{"LibriSpeech/README.TXT": b"read me", f"LibriSpeech/{name}/1/2/1-2-0000.flac": name.encode()})


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:\\out.txt"])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_no_member_lands_outside_the_folder(tmp_path: Path, name: str, make: object) -> None:
    archive = tmp_path / "in" / "bad.archive"
    archive.parent.mkdir()
    archive.write_bytes(make(**{"good.txt": b"good", name: b"bad"}))  # type: ignore[operator]
    with pytest.raises(DownloadError, match=r"would land outside the folder; nothing was unpacked"):
        unpack.unpack(archive, tmp_path / "in")
    assert os.listdir(tmp_path / "in") == ["bad.archive"]
    assert os.listdir(tmp_path) == ["in"]


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    with pytest.raises(DownloadError, match="'link' is a link or a device"):
        unpack.unpack(tmp_path / "bad.tar", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")
    with pytest.raises(DownloadError, match="'link' is a link"):
        unpack.unpack(tmp_path / "bad.zip", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, make: object) -> None:
    whole = make(**{f"{number}.bin": DATA[:5000] for number in range(4)})  # type: ignore[operator]
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (tmp_path / "flipped").write_bytes(damaged)
    (tmp_path / "short").write_bytes(whole[: len(whole) // 2])
    for name in ("flipped", "short"):
        with pytest.raises(DownloadError, match=r"damaged .* fetch it anew"):
            unpack.unpack(tmp_path / name, tmp_path / "out")
        assert os.listdir(tmp_path / "out") == []


def test_parts_are_joined_and_splits_share_their_folder(site: FileServer, tmp_path: Path) -> None:
    whole = zip_of(**{"wav/id1/a/1.wav": DATA, "wav/id2/b/1.wav": b"two"})
    site.files |= {"aa": whole[:1000], "ab": whole[1000:]}
    site.files |= {f"{name}.tar.gz": split_of(name) for name in ("dev", "test")}
    voices = Archive("voices.zip", (RemoteFile("http://nowhere/aa"), RemoteFile("http://nowhere/ab")))
    splits = [Archive(f"{name}.tar.gz", (RemoteFile(f"http://nowhere/{name}.tar.gz"),)) for name in ("dev", "test")]
    console = Console(file=io.StringIO())
    assert not fetch_archives(
        [voices, *splits], Place(tmp_path, site.address, is_keeping_archives=False), QUICK, console
    )
    assert (tmp_path / "wav/id1/a/1.wav").read_bytes() == DATA
    assert (tmp_path / "LibriSpeech/dev/1/2/1-2-0000.flac").read_bytes() == b"dev"
    assert (tmp_path / "LibriSpeech/test/1/2/1-2-0000.flac").read_bytes() == b"test"
    assert {name for name in os.listdir(tmp_path) if not name.startswith(".")} == {"wav", "LibriSpeech"}
    before = len(site.requests)
    fetch_archives([voices, *splits], Place(tmp_path, site.address), QUICK, console)
    assert len(site.requests) == before, "what is unpacked is not fetched again, though the archive is gone"
    shutil.rmtree(tmp_path / "LibriSpeech/dev")
    fetch_archives([voices, *splits], Place(tmp_path, site.address), QUICK, console)
    assert [path for path, _ in site.requests[before:]] == ["dev.tar.gz"], "what was removed is"
    assert (tmp_path / "LibriSpeech/dev/1/2/1-2-0000.flac").exists()


def test_a_kill_while_unpacking_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev.tar.gz").write_bytes(split_of("dev"))

    def kill(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_move_into", kill)
        with pytest.raises(KeyboardInterrupt):
            unpack.unpack(tmp_path / "dev.tar.gz", tmp_path)
    assert os.listdir(tmp_path) == ["dev.tar.gz"]
    assert not unpack.is_unpacked(tmp_path / "dev.tar.gz", tmp_path)
    unpack.unpack(tmp_path / "dev.tar.gz", tmp_path)
    assert unpack.is_unpacked(tmp_path / "dev.tar.gz", tmp_path)


def test_checksums_are_those_of_torchaudio() -> None:
    theirs = {
        url.rpartition("/")[2]: digest
        for url, digest in {**librispeech._CHECKSUMS, **speechcommands._CHECKSUMS}.items()
    }
    voices = voxceleb1._ARCHIVE_CONFIGS
    theirs |= {
        url.rpartition("/")[2]: digest
        for url, digest in zip(voices["dev"]["urls"], voices["dev"]["checksums"], strict=True)
    }
    theirs["vox1_test_wav.zip"] = voices["test"]["checksum"]
    datasets = (catalog.LIBRISPEECH, catalog.SPEECH_COMMANDS, catalog.VOXCELEB1)
    parts = [part for dataset in datasets for archive in dataset.archives.values() for part in archive.parts]
    assert {part.name: part.sha256 for part in parts} == theirs


def test_next_steps_name_formats_that_exist() -> None:
    steps = [
        dataset.next_step
        for dataset in (catalog.ESC50, catalog.LIBRISPEECH, catalog.SPEECH_COMMANDS, catalog.VOXCELEB1)
    ]
    assert {re.findall(r"--format (\S+)", step)[0] for step in steps} <= set(FORMATS)
    assert set(catalog.VIDEO_LISTS) <= set(FORMATS)


def test_the_command_line(site: FileServer, tmp_path: Path, download: Tool) -> None:
    site.files["master.zip"] = zip_of(
        **{"ESC-50-master/meta/esc50.csv": b"filename", "ESC-50-master/audio/1.wav": DATA}
    )
    code, output, error = download("esc50", "--out", str(tmp_path), "--mirror", site.address)
    assert code == 0, error
    assert (tmp_path / "ESC-50-master/audio/1.wav").read_bytes() == DATA
    assert f"next: mavil shards make {tmp_path}/ESC-50-master SHARDS --format esc50" in output


def test_ctrl_c_keeps_what_has_come_and_the_next_run_goes_on(site: FileServer, tmp_path: Path, download: Tool) -> None:
    whole = zip_of(**{"ESC-50-master/audio/1.wav": DATA})
    site.files["master.zip"], site.tags["master.zip"], site.faults["master.zip"] = whole, '"one"', ["slow"]
    part = tmp_path / "ESC-50-master.zip.part"

    def press() -> None:
        while not part.exists() and not site.closing.wait(0.02):
            pass
        site.closing.wait(0.3)  # some of the slow bytes
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press)
    finger.start()
    code, _, error = download("esc50", "--out", str(tmp_path), "--mirror", site.address)
    finger.join()
    assert (code, error) == (75, "download: stopped; run the same command to go on\n")
    kept = part.stat().st_size
    assert 0 < kept < len(whole)
    code, _, error = download("esc50", "--out", str(tmp_path), "--mirror", site.address)
    assert code == 0, error
    assert site.requests[-1] == ("master.zip", kept)
    assert (tmp_path / "ESC-50-master/audio/1.wav").read_bytes() == DATA


def test_voxceleb_asks_for_a_login_and_sends_it(
    site: FileServer, tmp_path: Path, download: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, error = download("voxceleb1", "test", "--out", str(tmp_path))
    assert code == 2
    assert "given out on request" in error
    assert error.count("\n") == 1
    monkeypatch.setenv("MAVIL_DOWNLOAD_PASSWORD", "secret")
    site.files["get"] = zip_of(**{"wav/id10001/a/00001.wav": b"voice"})
    code, out, error = download(
        "voxceleb1",
        "test",
        "--out",
        str(tmp_path),
        "--base-url",
        site.address + "/get?key=7&file={file}",
        "--user",
        "me",
    )
    assert code == 1, "what the server sent is not the published archive"
    assert "SHA-256" in out
    assert "1 of 2 files failed" in error
    assert site.headers[0]["authorization"] == "Basic bWU6c2VjcmV0"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["librispeech"], "which part"), (["librispeech", "train"], "'train' is none of dev-clean")],
)
def test_a_mistake_is_one_line(download: Tool, tmp_path: Path, arguments: list[str], words: str) -> None:
    code, _, error = download(*arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
