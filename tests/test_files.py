"""Output files and folders: whole or not there, one process at a time, strict JSON."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import pytest

from maskrcnn.errors import InputError
from maskrcnn.files import atomic_write, lock_folder, new_folder, to_json, write_text
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from maskrcnn.files import lock_folder
with lock_folder(Path(sys.argv[1]), "train"):
    print("locked", flush=True)
    time.sleep(60)
"""


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy, tifffile, torch
from PIL import Image
from maskrcnn.checkpoint import pack_checkpoint, save_checkpoint
from maskrcnn.errors import InputError
from maskrcnn.files import atomic_write, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # EFBIG where a full disk gives ENOSPC
noise = numpy.random.default_rng(0).integers(0, 255, (400, 400, 3), numpy.uint8)

def tiff(path):
    with atomic_write(path) as beside:
        tifffile.imwrite(beside, noise)

def png(path):
    with atomic_write(path) as beside:
        Image.fromarray(noise).save(beside, "PNG")

writers = {
    "text": lambda path: write_text(path, "x" * 200_000),
    "torch": lambda path: save_checkpoint(path, {"a": torch.zeros(100_000)}),
    "safetensors": lambda path: pack_checkpoint({"model": {"a": torch.zeros(100_000)}}, path),
    "tiff": tiff,
    "png": png,
}
try:
    writers[sys.argv[1]](Path(sys.argv[2]))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("writer", ["text", "torch", "safetensors", "tiff", "png"])
def test_a_full_disk_is_named_and_keeps_the_earlier_file(tmp_path: Path, writer: str) -> None:
    path = tmp_path / "result"
    path.write_text("earlier")
    command = [sys.executable, "-c", FULL_DISK, writer, str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    reason = "480000 requested and * written (is the disk full?)" if writer == "tiff" else "File too large"
    assert fnmatch(ended.stdout, f"{path}: cannot be written: {reason}\n".replace("?)", "[?])"))
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is synced, then renamed, then its folder is: as a power cut at any moment demands."""
    path, events = tmp_path / "folder" / "result.txt", []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(source: Path, destination: Path) -> None:
        events.append(f"{source.name} -> {destination.name}")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_text(path, "naïve\n")
    assert events == ["result.txt.part", "result.txt.part -> result.txt", "folder"]
    assert path.read_bytes() == "naïve\n".encode()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "result.txt"
    path.write_text("earlier")

    def fail() -> None:
        with atomic_write(path) as beside:
            beside.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_write(path) as beside:
        beside.write_text("whole")
        assert path.read_text() == "earlier"
    assert path.read_text() == "whole"


def test_permissions_are_those_of_the_replaced_file_or_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name, mode in (("new", None), ("shared", 0o664), ("secret", 0o600)):
            path = tmp_path / name
            if mode is not None:
                path.touch()
                path.chmod(mode)
            write_text(path, "x")
            assert stat.S_IMODE(path.stat().st_mode) == (0o640 if mode is None else mode)
    finally:
        os.umask(before)


@pytest.mark.parametrize("length", [1, 250, 251, 255])
def test_names_as_long_as_the_file_system_takes(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("é" * (length // 2) + "x" * (length % 2))
    write_text(path, "x")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["file/result.txt", "x" * 256])
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=rf"{name}: cannot be written: "):
        write_text(tmp_path / name, "x")


def test_a_folder_that_is_there_gets_a_number_added(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "20260101-120000"
    assert [new_folder(path).name for _ in range(3)] == [path.name, f"{path.name}-2", f"{path.name}-3"]


def test_folders_of_one_moment_are_different_ones(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_folder, [tmp_path / "run"] * 50))
    assert len(set(made)) == 50
    assert all(folder.is_dir() for folder in made)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/run: cannot be written"):
        new_folder(tmp_path / "file" / "run")


def test_another_process_keeps_its_folder_until_it_dies(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with (
            pytest.raises(InputError, match=rf"in use by process {other.pid} on .*\(train\); .* --out"),
            lock_folder(tmp_path, "train"),
        ):
            pass
        with lock_folder(tmp_path, "predict"):  # other work is not in its way
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with lock_folder(tmp_path, "train"):
        pass


def test_one_process_locks_a_folder_once_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):  # the first lock is released at the end of its block, though its file stays
        with lock_folder(tmp_path, "train"):
            with pytest.raises(InputError, match=f"in use by process {os.getpid()}"), lock_folder(tmp_path, "train"):
                pass
            with pytest.raises(InputError, match="in use"), lock_folder(tmp_path, "train"):
                pass  # the refused attempt has not released it


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A loader's workers live on for seconds after the training that started them was killed."""
    context = multiprocessing.get_context("fork")
    started, end = context.Event(), context.Event()
    child = context.Process(target=lambda: (started.set(), end.wait()))
    with lock_folder(tmp_path, "train"):
        child.start()
        started.wait()
    try:
        with lock_folder(tmp_path, "train"):
            assert child.is_alive()
    finally:
        end.set()
        child.join()


def test_without_locks_a_warning_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock_folder(tmp_path, "train"):
        pass
    assert "the file system has no locks (No locks available)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"missing/\.train\.lock: cannot be written"),
        lock_folder(tmp_path / "missing", "train"),
    ):
        pass


def test_json_is_strict() -> None:
    values = {"a": math.inf, "b": [1.5, -math.inf, (math.nan, "NaN")], "c": {"d": True, "e": None, "f": 3}}
    text = to_json(values)
    expected = {"a": None, "b": [1.5, None, [None, "NaN"]], "c": {"d": True, "e": None, "f": 3}}

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse) == expected
