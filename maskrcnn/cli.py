"""The command line ``maskrcnn train | predict | evaluate | pack | doctor``; ``train.py`` and ``infer.py`` call it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro

from maskrcnn.allocator import keep_freed_memory
from maskrcnn.checkpoint import build_model, load_checkpoint, pack_checkpoint
from maskrcnn.distributed import launched_rank
from maskrcnn.doctor import DoctorConfig
from maskrcnn.engine.config import TrainCli, TrainConfig
from maskrcnn.engine.evaluate import EvaluateConfig, evaluate_checkpoint
from maskrcnn.engine.resume import run_config
from maskrcnn.engine.steps import NonFiniteLossError
from maskrcnn.engine.train import train
from maskrcnn.errors import InputError, one_line_errors
from maskrcnn.export.config import InferConfig
from maskrcnn.export.infer import infer


@dataclass(frozen=True)
class PackConfig:
    """Convert best.pt to a file of half the size for prediction and fine-tuning (safetensors, bfloat16)."""

    checkpoint: Path
    """best.pt or last.pt of a run."""
    out: Path
    """The file to write, NAME.safetensors."""

    def run(self) -> None:
        if self.out.suffix != ".safetensors":
            raise InputError(f"--out is {self.out}; expected a name that ends with .safetensors")
        contents = load_checkpoint(self.checkpoint)
        build_model(contents, self.checkpoint)  # raises InputError if the weights do not fit
        contents["config"] = TrainConfig.from_dict(contents["config"]).to_dict()  # or if the options are invalid
        pack_checkpoint(contents, self.out)
        print(f"{self.out}: {self.out.stat().st_size / 1e6:.1f} MB")


COMMANDS = {
    "train": (TrainCli, "Train Mask R-CNN on folders of cell pictures."),
    "predict": (InferConfig, "Find, outline and classify the cells in pictures."),
    "evaluate": (EvaluateConfig, "Score a checkpoint on pictures whose cells are known."),
    "pack": (PackConfig, "Make a small file of a checkpoint."),
    "doctor": (DoctorConfig, "Tell what is installed, which kernels are in use, and what is missing."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``maskrcnn COMMAND OPTIONS``; for invalid input, print one line and exit with status 2."""
    command, *options = (sys.argv[1:] if arguments is None else list(arguments)) or [""]
    if command not in COMMANDS:
        lines = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
        print(f"usage: maskrcnn COMMAND [OPTIONS]    (maskrcnn COMMAND --help lists them)\n\n{lines}")
        sys.exit(0 if command in ("-h", "--help") else 2)
    run_command(command, options)


def run_command(command: str, options: Sequence[str] | None = None) -> None:
    """Run one of :data:`COMMANDS`, with the options of the command line unless others are given."""
    kind, description = COMMANDS[command]
    with one_line_errors():
        parse = partial(tyro.cli, kind, prog=f"maskrcnn {command}", description=description, args=options)
        config: TrainConfig | InferConfig | EvaluateConfig | PackConfig | DoctorConfig = parse()
        if isinstance(config, TrainConfig) and config.resume is not None:
            config = parse(default=run_config(config.resume))  # options that are not given keep the run's values
        try:
            status = _run(config)
        except NonFiniteLossError as error:
            sys.exit(f"error: {error}" if launched_rank() == 0 else 1)  # all processes raise it
    if status:
        sys.exit(status)


def _run(config: TrainConfig | InferConfig | EvaluateConfig | PackConfig | DoctorConfig) -> int:
    """Run a command and return the exit status: 1 if pictures failed, or the doctor found something broken."""
    keep_freed_memory()
    if isinstance(config, DoctorConfig):
        return config.run()
    if isinstance(config, InferConfig):
        return 1 if infer(config).failures else 0
    if isinstance(config, TrainConfig):
        train(config)
    elif isinstance(config, EvaluateConfig):
        evaluate_checkpoint(config)
    else:
        config.run()
    return 0
