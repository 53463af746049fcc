"""The command line ``maskrcnn COMMAND``, see :data:`COMMANDS`; ``train.py`` and ``infer.py`` are two of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import tyro
from ruamel.yaml import YAML, YAMLError

from maskrcnn import __version__
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
from maskrcnn.export.convert import ConvertConfig, convert
from maskrcnn.export.infer import infer
from maskrcnn.options import from_flat, names_of_lists


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


Config = TrainConfig | InferConfig | EvaluateConfig | ConvertConfig | PackConfig | DoctorConfig

OF_ONE_RUN = ("command", "versions", "out", "resume")
"""Entries of ``config.json`` that another run with the same options does not share."""

COMMANDS = {
    "train": (TrainCli, "Train Mask R-CNN on folders of cell pictures."),
    "predict": (InferConfig, "Find, outline and classify the cells in pictures."),
    "evaluate": (EvaluateConfig, "Score a checkpoint on pictures whose cells are known."),
    "convert": (ConvertConfig, "Write cells that are known already in other formats."),
    "pack": (PackConfig, "Make a small file of a checkpoint."),
    "doctor": (DoctorConfig, "Tell what is installed, which kernels are in use, and what is missing."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``maskrcnn COMMAND OPTIONS``; for invalid input, print one line and exit with status 2."""
    command, *options = (sys.argv[1:] if arguments is None else list(arguments)) or [""]
    if command == "--version":
        print(f"maskrcnn {__version__}")
        return
    if command not in COMMANDS:
        lines = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
        print(f"usage: maskrcnn COMMAND [OPTIONS] | --version    (maskrcnn COMMAND --help lists them)\n\n{lines}")
        sys.exit(0 if command in ("-h", "--help") else 2)
    run_command(command, options)


def run_command(command: str, options: Sequence[str] | None = None) -> None:
    """Run one of :data:`COMMANDS`, with the options of the command line unless others are given."""
    kind, description = COMMANDS[command]
    description += " --config FILE: options by name (YAML or JSON); those that are given besides win."
    with one_line_errors():
        file, rest = _split_config(command, sys.argv[1:] if options is None else options)
        _check_lists(kind, rest)
        parse = partial(tyro.cli, kind, prog=f"maskrcnn {command}", description=description, args=rest)
        config: Config = parse() if file is None else parse(default=_read_config(file, kind))
        if isinstance(config, TrainConfig) and config.resume is not None:
            if file is not None:
                raise InputError(
                    "--config is given with --resume, which has the run's own options; expected one of them"
                )
            config = parse(default=run_config(config.resume))  # options that are not given keep the run's values
        try:
            status = _run(config)
        except NonFiniteLossError as error:
            sys.exit(f"error: {error}" if launched_rank() == 0 else 1)  # all processes raise it
    if status:
        sys.exit(status)


def _split_config(command: str, options: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file of ``--config``, if it is given, and the other options."""
    parser = argparse.ArgumentParser(f"maskrcnn {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    given, rest = parser.parse_known_args(options)
    return given.config, rest


def _check_lists(kind: Any, options: Sequence[str]) -> None:
    """Raise InputError for a list option that is given twice: the parser would forget the first values."""
    given = [option.partition("=")[0] for option in options]
    for name in names_of_lists(_dataclass(kind)):
        spellings = (f"--{name}", f"--{name.replace('_', '-')}")
        if sum(option in spellings for option in given) > 1:
            raise InputError(f"{spellings[1]} is given twice; expected once, with all its values: {spellings[1]} A B")


def _dataclass(kind: Any) -> Any:
    """The dataclass of one of :data:`COMMANDS`, without what it is annotated with."""
    return get_args(kind)[0] if get_args(kind) else kind


def _read_config(path: Path, kind: Any) -> Config:
    """Read options by name from a YAML 1.2 file, of which JSON is a part; raises InputError.

    Of a run's ``config.json``, :data:`OF_ONE_RUN` is left out.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from None
    if isinstance(values, dict) and "command" in values:  # config.json
        values = {name: value for name, value in values.items() if name not in OF_ONE_RUN}
    try:
        return from_flat(_dataclass(kind), {} if values is None else values)
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from None


def _run(config: Config) -> int:
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
    elif isinstance(config, ConvertConfig):
        convert(config)
    else:
        config.run()
    return 0
