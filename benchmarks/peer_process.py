"""Runs a model of another project in a separate process and environment.

Implements both ends of the communication: lines of JSON over the standard streams, arrays in files. This module only
needs NumPy, so that it runs in any environment. As a program it prints the versions of modules that can be imported:

    python -m benchmarks.peer_process stardist tensorflow
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Found = tuple[np.ndarray, np.ndarray]
"""A label image int32 [H, W], and the score of cell i + 1 at [i]."""


def start_options(threads: int) -> dict[str, Any]:
    """For :mod:`subprocess`: the folder to import ``benchmarks`` from, ``threads`` threads, and no GPU."""
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    return {"cwd": ROOT, "env": {**os.environ, **dict.fromkeys(counts, str(threads)), **quiet}}


def versions(python: Path, modules: Sequence[str]) -> tuple[str | None, str]:
    """The versions of ``modules`` in that environment; None and the reason where they cannot be imported."""
    command = [str(python), "-m", "benchmarks.peer_process", *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **start_options(1))
    except OSError as error:
        return None, str(error)
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1], ""
    return None, (done.stderr.strip().splitlines() or [f"{python} ended with code {done.returncode}"])[-1]


class Peer:
    """The client end. The output of the process goes to the file ``log``.

    Attributes:
        about: what the process told of itself when it was ready.
    """

    def __init__(self, python: Path, module: str, arguments: Sequence[str], log: Path, threads: int) -> None:
        self._log, command = log, [str(python), "-m", module, *arguments]
        with open(log, "a") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                **start_options(threads),
            )
        self.about = self._ask(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()  # closes its standard input, upon which it ends

    def seconds(self, picture: Path, diameter: float | None = None) -> float:
        """How long the prediction of a picture takes, from its pixels in memory on."""
        return self._ask({"picture": str(picture.resolve()), "diameter": diameter, "found": None})["seconds"]

    def find(self, picture: Path, diameter: float | None = None) -> Found:
        """The cells of a picture."""
        found = self._log.with_suffix(".npz").resolve()
        self._ask({"picture": str(picture.resolve()), "diameter": diameter, "found": str(found)})
        with np.load(found) as arrays:
            return arrays["labels"], arrays["scores"]

    def _ask(self, request: dict[str, Any] | None) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the missing reply tells
            if request is not None:
                print(json.dumps(request), file=self._process.stdin, flush=True)
        reply = self._process.stdout.readline()
        if not reply:
            raise SystemExit(f"error: {self._process.args[2]} ended with code {self._process.wait()}; see {self._log}")
        return json.loads(reply)


class Answers:
    """The server end: standard output is only for replies; output of libraries is redirected to standard error."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self, predict: Callable[[np.ndarray, float | None], Found | None], **about: Any) -> None:
        """Answer until standard input ends; ``predict`` takes uint8 [H, W] and the cells' median diameter."""
        self._say(about)
        for line in sys.stdin:
            request = json.loads(line)
            with np.load(request["picture"]) as arrays:
                image = arrays["image"]
            start = time.perf_counter()
            found = predict(image, request["diameter"])
            seconds = time.perf_counter() - start
            if request["found"] is not None:
                labels, scores = found
                np.savez(request["found"], labels=labels, scores=scores)
            self._say({"seconds": seconds})

    def _say(self, reply: dict[str, Any]) -> None:
        print(json.dumps(reply), file=self._replies, flush=True)


def _print_versions(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    packages = [metadata.packages_distributions()[module][0] for module in modules]
    print(", ".join(f"{package} {metadata.version(package)}" for package in packages))


if __name__ == "__main__":
    _print_versions(sys.argv[1:])
