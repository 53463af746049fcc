"""Everything that needs a GPU, by one command: build, tests, sanitizers, benchmarks and a short training.

    make gpu            on a machine with an NVIDIA GPU, at most 25 minutes
    make gpu DRY=1      the same steps on the CPU with small sizes, to see that they run

Each step is a process of its own with a time limit, so that the results of the others are kept when one fails. Its
output goes to one file per step in ``benchmarks/results/gpu-<name of the GPU>/`` (dry: ``runs/gpu-dry/``), and a table
of the steps and of the ops to README.md there, which is rewritten after each step. Ends with status 1 if a step failed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from benchmarks.measure import machine, table

ROOT = Path(__file__).resolve().parent.parent
FAILED = ("failed", "timed out")


@dataclass(frozen=True)
class Options:
    """Build, test and time everything that needs a GPU."""

    dry: bool = False
    """Run every step on the CPU with small sizes."""
    out: Path | None = None
    """Folder of the results; default: named after the GPU in benchmarks/results."""
    only: tuple[str, ...] = ()
    """Names of the steps to run; default: all."""
    minutes: float = 25.0
    """Time for all steps together; a step may also have a limit of its own."""


@dataclass(frozen=True)
class Step:
    """One process: its command, what it needs, and its time limit in minutes."""

    name: str
    command: list[str]
    minutes: float
    environment: dict[str, str] = field(default_factory=dict)
    needs: str | None = None
    """A program that must be there; the step is skipped without it."""

    def text(self) -> str:
        """The command as one types it."""
        shown = ["python" if part == sys.executable else part for part in self.command]
        return " ".join([*(f"{key}={value}" for key, value in self.environment.items()), shlex.join(shown)])


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    step: Step
    state: str
    seconds: float = 0.0


def steps(dry: bool) -> list[Step]:
    """The steps in order of their worth: if time runs out, the last ones are missing."""
    device = "cpu" if dry else "cuda"
    python = [sys.executable]
    test = [*python, "-m", "pytest", "-q"]
    on_gpu = [*test, "-m", "cuda"]
    # not 100,000 boxes: blocks that wait for each other take minutes there
    sanitized = [*test, "tests/csrc/test_cuda_on_cpu.py"] if dry else [*on_gpu, "-x", "-k", "not 100_000", "tests/ops"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # one allocation per tensor, so that reads beyond it are found
    capability = "".join(map(str, torch.cuda.get_device_capability())) if not dry else ""
    return [
        Step(
            "build",
            [*python, "setup.py", "build_ext", "--inplace"],
            8,
            {"MASKRCNN_CUDA": "0"} if dry else {"MASKRCNN_CUDA": "1", "MASKRCNN_CUDA_ARCHS": capability},
        ),
        Step("tests", [*on_gpu, "tests"], 5),
        Step("ops", _benchmark("ops", device, *(["--budget", "0.01", "--only", "nms"] if dry else [])), 4),
        Step("memcheck", _sanitizer("memcheck", dry) + sanitized, 5, {} if dry else uncached, _program(dry)),
        Step("racecheck", _sanitizer("racecheck", dry) + sanitized, 5, {}, _program(dry)),
        Step("training-curve", _benchmark("training_curve", device, *(["--steps", "3"] if dry else [])), 3),
        Step(
            "train-step",
            _benchmark("train_step", device, "--budget", "0" if dry else "20", *_small("20", "96", dry)),
            4,
        ),
        Step(
            "infer",
            _benchmark("infer", device, *(["--quick"] if dry else ["--precisions", "fp32", "bf16", "--budget", "10"])),
            5,
        ),
    ]


def _benchmark(name: str, device: str, *options: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", "--device", device, *options]


def _small(cells: str, size: str, dry: bool) -> list[str]:
    return ["--cells", cells, "--size", size] if dry else ["--precisions", "fp32", "bf16"]


def _program(dry: bool) -> str | None:
    return None if dry else "compute-sanitizer"


def _sanitizer(tool: str, dry: bool) -> list[str]:
    return [] if dry else [_find("compute-sanitizer") or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]


def _find(program: str) -> str | None:
    """Path of a program of the CUDA toolkit, which is often not on the PATH."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(program) or shutil.which(program, path=f"{home}/bin")


def run(step: Step, log: Path, limit: float) -> Result:
    """Run a step for at most ``limit`` seconds, its output to ``log``, and end all of its processes."""
    if step.needs and _find(step.needs) is None:
        return Result(step, f"skipped: {step.needs} was not found")
    start = time.monotonic()
    with log.open("w") as output:
        output.write(f"$ {step.text()}\n")
        output.flush()
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env={**os.environ, **step.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            state = "passed" if process.wait(limit) == 0 else f"failed with status {process.returncode}"
        except subprocess.TimeoutExpired:
            state = f"timed out after {limit:.0f} s"
        finally:
            _end(process)
    return Result(step, state, time.monotonic() - start)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and what it started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # all of them have ended
    process.kill()
    process.wait()


def readme(results: list[Result], folder: Path, device: str) -> str:
    """The table of the steps, and what the benchmark of the ops and the training printed."""
    rows = [[r.step.name, f"`{r.step.text()}`", r.state, f"{r.seconds:.0f} s"] for r in results]
    parts = [
        f"# {machine(device)}",
        "    make gpu" + (" DRY=1" if device == "cpu" else ""),
        f"Commit {_commit()}. Each step's whole output is in the file of its name.",
        table(["step", "command", "result", "time"], rows),
    ]
    for name in ("ops", "training-curve"):
        log = folder / f"{name}.txt"
        if log.is_file() and (tables := _tables(log.read_text())):
            parts += [f"## {name}", *tables]
    return "\n\n".join(parts) + "\n"


def _tables(text: str) -> list[str]:
    """The Markdown tables in the output of a program."""
    return [match.group().rstrip() for match in re.finditer(r"(?:^\|.*\|\n)+", text, re.MULTILINE)]


def _commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main(options: Options) -> None:
    if not options.dry and not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no NVIDIA GPU; make gpu DRY=1 runs every step on the CPU")
    device = "cpu" if options.dry else "cuda"
    name = "dry" if options.dry else re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower())
    folder = options.out or ROOT / ("runs" if options.dry else "benchmarks/results") / f"gpu-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = steps(options.dry)
    if unknown := set(options.only) - {step.name for step in wanted}:
        sys.exit(f"error: no step is named {', '.join(sorted(unknown))}; {', '.join(step.name for step in wanted)} are")
    deadline = time.monotonic() + options.minutes * 60
    results: list[Result] = []
    for step in wanted:
        if options.only and step.name not in options.only:
            continue
        left = deadline - time.monotonic()
        print(f"{step.name}: {step.text()}", flush=True)
        limit = min(step.minutes * 60, left)
        done = run(step, folder / f"{step.name}.txt", limit) if limit > 0 else Result(step, "timed out: not started")
        results.append(done)
        print(f"{step.name}: {done.state} in {done.seconds:.0f} s", flush=True)
        (folder / "README.md").write_text(readme(results, folder, device))
    print(folder / "README.md")
    sys.exit(any(result.state.startswith(FAILED) for result in results))


if __name__ == "__main__":
    main(tyro.cli(Options))
