"""The steps of ``make gpu``: whatever happens to one of them, the others' results are kept."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Options, Step
from benchmarks.training_curve import disagreements

HANG = "import subprocess, sys, time; print(subprocess.Popen(['sleep', '300']).pid, flush=True); time.sleep(300)"


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_step_that_fails_or_hangs_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        Step("build", _python("import sys; sys.exit(3)"), 1),
        Step("hangs", _python(HANG), 2 / 60),
        Step("racecheck", _python("pass"), 1, needs="a-program-that-is-not-there"),
        Step("ops", _python("print('first | line'); print('| op | ours |'); print('| --- | --- |')"), 1, {"A": "1"}),
    ]
    monkeypatch.setattr(gpu, "steps", lambda dry: made)
    with pytest.raises(SystemExit) as ended:
        gpu.main(Options(dry=True, out=tmp_path))
    assert ended.value.code == 1
    text = (tmp_path / "README.md").read_text()
    for expected in (
        "| failed with status 3 |",
        "| timed out after 2 s |",
        "| skipped: a-program-that-is-not-there was not found |",
        "`A=1 python -c",
        "## ops\n\n| op | ours |\n| --- | --- |\n",
    ):
        assert expected in text
    child = int((tmp_path / "hangs.txt").read_text().splitlines()[1])
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    """Whether a process lives; one that was killed and not yet waited for by init does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_all_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "steps", lambda dry: [Step("tests", _python("pass"), 1)])
    with pytest.raises(SystemExit) as ended:
        gpu.main(Options(dry=True, out=tmp_path))
    assert ended.value.code == 0
    assert "| passed |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("dry", [True, False])
def test_steps_run_what_exists(dry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "get_device_capability", lambda: (9, 0))
    for step in gpu.steps(dry):
        words = step.command + [f"{key}={value}" for key, value in step.environment.items()]
        if "-m" in words and (module := words[words.index("-m") + 1]).startswith("benchmarks."):
            assert Path(*module.split(".")).with_suffix(".py").is_file()
        for word in words:
            assert not word.startswith("tests") or Path(word).exists()
    assert ("MASKRCNN_CUDA_ARCHS=90" in gpu.steps(dry)[0].text()) == (not dry)


def test_losses_that_do_not_follow() -> None:
    expected = [3.0 - 0.01 * i for i in range(20)]
    assert not disagreements(expected, expected, "cuda fp32")
    assert disagreements(expected, [*expected[:4], float("nan"), *expected[5:]], "cuda fp32")
    assert disagreements(expected, [2.9, *expected[1:]], "cuda fp32")
    assert not disagreements(expected, [2.9, *expected[1:]], "cuda bf16")
    (fault,) = disagreements(expected, [*expected[:10], *(1.2 * x for x in expected[10:])], "cuda bf16")
    assert "from step 11 on" in fault
