"""Output files and folders: whole or not there, one process at a time, strict JSON."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskrcnn.errors import InputError
from maskrcnn.files import lock_folder, new_folder, to_json
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from maskrcnn.files import lock_folder
with lock_folder(Path(sys.argv[1]), "train"):
    print("locked", flush=True)
    time.sleep(60)
"""


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


def test_without_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with lock_folder(tmp_path, "train"):
        pass
    assert "its file system has no locks (No locks available)" in capsys.readouterr().err


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
