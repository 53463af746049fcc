"""Pictures and tiles that several processes share give the files of one process, byte for byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from maskrcnn.errors import InputError
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer
from tests.conftest import ROOT
from tests.export.runs import ALL

OPTIONS = ("--tile", "128", "--overlap", "32", "--precision", "fp32", "--format", *ALL, "--device", "cpu")


def disc_picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """Bright discs of 28 pixels on noise, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, size)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(size[0] * size[1] // 4000):
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        pixels[(y - cy) ** 2 + (x - cx) ** 2 < 196] += 120
    return np.clip(pixels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large picture, two small ones, and one whose pixels are missing."""
    folder = tmp_path_factory.mktemp("pictures")
    tifffile.imwrite(folder / "large.tif", disc_picture((640, 512), 0))
    for name in ("a", "b"):
        Image.fromarray(disc_picture((80, 96), ord(name))).save(folder / f"{name}.png")
    tifffile.imwrite(folder / "cut.tif", disc_picture((640, 513), 1))
    os.truncate(folder / "cut.tif", 100_000)
    return folder


@pytest.fixture(scope="module")
def of_one(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    out = tmp_path_factory.mktemp("one")
    done = _run([sys.executable, "infer.py"], pictures, out)
    assert done.returncode == 1  # one picture fails
    files = _files(out)
    assert "labels/large.tif" in files
    assert len(tifffile.imread(out / "labels/large.tif").nonzero()[0]) > 100
    return files


def _run(launcher: list[str], pictures: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "--images", str(pictures), "--out", str(out), *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def _files(out: Path) -> dict[str, bytes]:
    """Without infer.json, whose versions say nothing here, and locks."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths if not path.name.startswith(".")}


def _same(out: Path, expected: dict[str, bytes]) -> None:
    found = _files(out)
    assert sorted(found) == sorted(expected)
    assert [name for name, content in expected.items() if found[name] != content] == []


def test_two_processes_share_the_tiles(pictures: Path, of_one: dict[str, bytes], tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "infer.py"]
    done = _run(launcher, pictures, tmp_path)
    assert "passed over" in done.stderr
    _same(tmp_path, of_one)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[Path, list[subprocess.Popen[bytes]]]]:
    """The file of a scheduler, and its two workers."""
    pytest.importorskip("distributed")
    place = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}

    def begin(module: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", module, "--scheduler-file", str(place), *options]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)

    with (tmp_path / "log.txt").open("wb") as log:
        scheduler = begin("distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--no-jupyter")
        worker = ("distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1", "--no-dashboard")
        workers = [begin(*worker) for _ in range(2)]
        try:
            yield place, workers
        finally:
            for process in [*workers, scheduler]:
                process.kill()
                process.wait()
            print((tmp_path / "log.txt").read_text()[-3000:])


def test_workers_of_which_one_is_killed(
    pictures: Path,
    of_one: dict[str, bytes],
    tmp_path: Path,
    cluster: tuple[Path, list[subprocess.Popen[bytes]]],
) -> None:
    from distributed import Client

    place, workers = cluster
    out = tmp_path / "out"
    with Client(scheduler_file=str(place), set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        ours = {
            info["id"]: client.run(os.getpid, workers=[address])[address]
            for address, info in client.scheduler_info()["workers"].items()
        }
        assert sorted(ours.values()) == sorted(worker.pid for worker in workers)
        command = [sys.executable, "infer.py", "--images", str(pictures), "--out", str(out), *OPTIONS]
        command += ["--dask", str(place)]
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        killed = ""
        while not killed and run.poll() is None and time.monotonic() < deadline:
            for address, tasks in client.processing().items():
                if any("detect" in str(task) for task in tasks):  # tiles of the large picture
                    os.kill(client.run(os.getpid, workers=[address])[address], signal.SIGKILL)
                    killed = address
                    break
            time.sleep(0.02)
        _, errors = run.communicate(timeout=240)
        assert killed, errors
        assert run.returncode == 1, errors  # one picture fails, as in one process
        assert len(client.scheduler_info()["workers"]) == 1
    _same(out, of_one)


def test_no_scheduler(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskrcnn.export.cluster.TIMEOUT", "1s")
    config = InferConfig(images=(pictures,), out=tmp_path, device="cpu", dask="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match=r"--dask tcp://127\.0\.0\.1:9: no scheduler answers there"):
        infer(config)


def test_tiles_that_do_not_fit(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the memory of a worker: the picture is passed over, and the message says what to do."""
    pytest.importorskip("distributed")
    from distributed import Client, LocalCluster

    from maskrcnn.predict.predictor import Predictor

    def too_large(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Predictor, "detect", too_large)
    with LocalCluster(1, processes=False, threads_per_worker=2, dashboard_address=None) as local, Client(local):
        config = InferConfig(
            images=(pictures / "large.tif",),
            out=tmp_path,
            tile=128,
            device="cpu",
            diameter=28.0,
            dask=local.scheduler_address,
        )
        outcome = infer(config)
    assert "out of memory with tiles of 128 pixels; choose a smaller --tile" in outcome.failures["large"]
