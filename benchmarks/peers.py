"""Comparison of our model with StarDist and Cellpose in accuracy and time, on the same validation pictures.

    python -m benchmarks.peers --checkpoint FILE [--hours 8] [--python-stardist PATH] [--python-cellpose PATH]

The pictures are the validation pictures of the run that wrote the checkpoint, of one source: fluorescence, for which
StarDist was made. StarDist is trained from scratch on the training pictures of that source and split for ``--hours``,
as in its own example; a stopped run is resumed. All results are scored by the same function of ours: TP / (TP + FP +
FN), from label images. StarDist's thresholds are fitted on the same pictures, as its users do; ours are those of the
checkpoint, fitted on all validation pictures of its run if that is complete.

Cellpose's weights have to be downloaded, so its network is built with random ones and only timed. Times are measured
for one model after the other, picture by picture, with the same number of threads (``OMP_NUM_THREADS``), on the CPU,
from pixels in memory to a label image.

The peers run in separate processes and may have separate environments: ``pip install -e '.[benchmarks]'`` installs all
in one. A peer that is not installed is reported and skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

import maskrcnn
from benchmarks.measure import datasets_of_run, machine, of_source, seconds, table
from benchmarks.peer_process import Found, Peer, start_options, versions
from maskrcnn.checkpoint import load_checkpoint
from maskrcnn.data.coco import to_coco
from maskrcnn.data.dataset import CellDataset
from maskrcnn.device import cpu_computes_bfloat16
from maskrcnn.evaluation.dense import AT, dense_metrics
from maskrcnn.predict.predictor import Diameter, Predictor
from maskrcnn.structures import Detections, InstanceLabels
from maskrcnn.structures.rle import label_image

THREADS = torch.get_num_threads()
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Score and time the models side by side."""

    checkpoint: Path
    """Of a run, or a packaged model with its run's folders as --data; the run's split is used."""
    out: Path = Path("runs/peers")
    """Folder for the pictures, StarDist's training, logs and report.md."""
    data: tuple[Path, ...] = ()
    """The run's data folders, if they have moved."""
    source: str = "dsb2018/class1"
    """Source of the pictures: the data folder's name, and the class where a picture has cells of one class only."""
    hours: float = 8.0
    """For the training of StarDist, in all."""
    python_stardist: Path = Path(sys.executable)
    """Interpreter that has StarDist and TensorFlow."""
    python_cellpose: Path = Path(sys.executable)
    """Interpreter that has Cellpose."""
    timed: int = 6
    """Pictures to take times of, evenly spread over all; 0: no times."""
    rounds: int = 3
    """How often each of them is timed."""
    pictures: int | None = None
    """Take the first few training and validation pictures only, to see that everything works."""


@dataclass(frozen=True)
class Contender:
    """A model on the validation pictures.

    Attributes:
        seconds: of the prediction of the picture at an index.
        results: COCO results of that picture, those to be believed alone; None: its weights are random.
    """

    name: str
    seconds: Callable[[int], float]
    results: Callable[[int], Results] | None


@dataclass(frozen=True)
class Pictures:
    """Those of one source.

    Attributes:
        files: what the peers read of the validation pictures.
        trained_on: how many training pictures of all sources our model had.
    """

    train: CellDataset
    val: CellDataset
    files: list[Path]
    trained_on: int

    def diameter(self, index: int) -> float | None:
        return self.val.labels(index).median_diameter()


def prepare(options: Options) -> Pictures:
    """Choose the pictures, and write them where the peers read them."""
    datasets = datasets_of_run(options.checkpoint, options.data, merge_classes="cell")
    parts = {part: of_source(getattr(datasets, part), options.source, options.pictures) for part in ("train", "val")}
    names, listed = {part: dataset.names for part, dataset in parts.items()}, options.out / "pictures.json"
    folder = options.out / "data"
    if not listed.is_file():
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was interrupted
        for part, dataset in parts.items():
            write(dataset, folder / part)
        listed.write_text(json.dumps(names, indent=2) + "\n")
    elif json.loads(listed.read_text()) != names:
        raise SystemExit(f"error: {listed} names other pictures than this run's; expected another folder as --out")
    return Pictures(**parts, files=sorted((folder / "val").glob("*.npz")), trained_on=len(datasets.train))


def write(dataset: CellDataset, folder: Path) -> None:
    """Write one file per picture: ``image`` uint8 [H, W], ``labels`` int32 [H, W]."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(dataset)):
        sample = dataset[index]
        grey = sample.image.float().mean(-1).round().byte()
        labels = label_image(sample.labels.to_rle(), sample.labels.size)
        np.savez_compressed(folder / f"{index:05d}.npz", image=grey.numpy(), labels=labels)


def ours(name: str, predictor: Predictor, pictures: Pictures, given: bool) -> Contender:
    """``given``: the median diameter of a picture's true cells is known; else it is estimated."""

    diameters: list[Diameter | None] = [None] * len(pictures.val)
    if given:
        diameters = [pictures.diameter(index) or "none" for index in range(len(pictures.val))]

    def find(index: int) -> Detections:
        diameter = diameters[index]
        return predictor.predict(pictures.val.picture(index), diameter=diameter).filter(predictor.score_threshold)

    def results(index: int) -> Results:
        found = find(index).to_coco(pictures.val.image_ids[index])
        return [{**result, "category_id": 1} for result in found]  # the classes of the truth are merged

    return Contender(name, lambda index: seconds(lambda: find(index).to_labels()), results)


def our_contenders(options: Options, pictures: Pictures) -> tuple[list[Contender], str]:
    """Our model with what is known of the diameter, and a line about it."""
    predictor = maskrcnn.load(options.checkpoint, device="cpu")
    steps = load_checkpoint(options.checkpoint)["step"]
    scale = "the pictures' own scale" if predictor.diameter is None else f"cells of {predictor.diameter:g} pixels"
    text = (
        f"Ours: {options.checkpoint}, trained on {pictures.trained_on} pictures of all its sources for {steps} steps, "
        f"at {scale}; cells from a score of {', '.join(f'{score:g}' for score in predictor.score_threshold)}"
    )
    names = {"ours": False}
    if predictor.diameter is not None:
        names = {"ours, diameter estimated": False, "ours, diameter given": True}
    return [ours(name, predictor, pictures, given) for name, given in names.items()], text


def to_results(found: Found, image_id: int) -> Results:
    """COCO results (RLE as text) of a label image."""
    labels, scores = found
    cells = InstanceLabels.from_planes(torch.from_numpy(labels)[None], (1,))
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "score": float(scores[number - 1]),
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
        }
        for rle, number in zip(cells.to_rle(), cells.ids.tolist(), strict=True)
    ]


def train_stardist(options: Options) -> None:
    """In a process of its own; its output goes to ``stardist-train.log``."""
    log = options.out / "stardist-train.log"
    command = [str(options.python_stardist), "-m", "benchmarks.peer_stardist", "train"]
    print(f"training StarDist for {options.hours:g} hours in all; see {log}", file=sys.stderr)
    with open(log, "a") as file:
        arguments = [str(options.out.resolve()), str(options.hours)]
        done = subprocess.run([*command, *arguments], stdout=file, stderr=file, check=False, **start_options(THREADS))
    if done.returncode != 0:
        raise SystemExit(f"error: the training of StarDist ended with code {done.returncode}; see {log}")


@contextlib.contextmanager
def stardist(options: Options, pictures: Pictures) -> Iterator[tuple[Contender | None, str]]:
    """StarDist, trained, and a line about it."""
    found, reason = versions(options.python_stardist, ("stardist", "tensorflow"))
    if found is None:
        yield None, f"StarDist was left out: {options.python_stardist}: {reason}"
        return
    train_stardist(options)
    arguments = ["predict", str(options.out.resolve())]
    log = options.out / "stardist.log"
    with Peer(options.python_stardist, "benchmarks.peer_stardist", arguments, log, THREADS) as peer:
        text = describe_stardist(found, peer.about, len(pictures.train))

        def results(index: int) -> Results:
            return to_results(peer.find(pictures.files[index]), pictures.val.image_ids[index])

        yield Contender("StarDist", lambda index: peer.seconds(pictures.files[index]), results), text


def describe_stardist(found: str, about: dict[str, Any], pictures: int) -> str:
    hours, epochs = about["seconds"] / 3600, about["steps"] / about["steps_per_epoch"]
    return (
        f"StarDist: {found}; 32 rays, grid 2x2; trained on {pictures} pictures for {hours:.3g} hours: "
        f"{about['steps']} steps, {epochs:.3g} of its {about['epochs_at_most']} epochs, learning rate "
        f"{about['learning_rate']:.3g} at the end; thresholds "
        + ", ".join(f"{key} {value:.3g}" for key, value in about["thresholds"].items())
    )


@contextlib.contextmanager
def cellpose(options: Options, pictures: Pictures) -> Iterator[tuple[Contender | None, str]]:
    """The network of Cellpose, and a line about it."""
    if options.timed == 0:
        yield None, "Cellpose was left out: --timed is 0, and its weights are random"
        return
    found, reason = versions(options.python_cellpose, ("cellpose", "torch"))
    if found is None:
        yield None, f"Cellpose was left out: {options.python_cellpose}: {reason}"
        return
    precision = "bf16" if cpu_computes_bfloat16() else "fp32"  # as our predictor chooses
    log = options.out / "cellpose.log"
    with Peer(options.python_cellpose, "benchmarks.peer_cellpose", [precision], log, THREADS) as peer:
        text = (
            f"Cellpose: {found}; Cellpose-SAM's network of {peer.about['parameters'] / 1e6:.0f} million parameters in "
            f"{precision} with random weights (its own have to be downloaded), at the diameter of the true cells; "
            "without the flows that follow"
        )

        def taken(index: int) -> float:
            return peer.seconds(pictures.files[index], pictures.diameter(index))

        yield Contender("Cellpose's network", taken, None), text


def accuracy(contender: Contender, pictures: Pictures) -> list[str]:
    """TP / (TP + FP + FN) at each IoU of :data:`AT`."""
    if contender.results is None:
        return [""] * len(AT)
    indices = tqdm(range(len(pictures.val)), desc=contender.name, leave=False)
    results = [result for index in indices for result in contender.results(index)]
    scores = dense_metrics(to_coco(pictures.val), results, score_threshold=0.0)
    return [f"{scores[name]:.3f}" for name in AT]


def seconds_per_megapixel(contenders: Sequence[Contender], pictures: Pictures, options: Options) -> list[str]:
    """Of each contender the median over the rounds; each predicts every picture once before, to warm up."""
    count = min(options.timed, len(pictures.val))
    chosen = np.linspace(0, len(pictures.val) - 1, count).round().astype(int).tolist()
    if not chosen:
        return [""] * len(contenders)
    megapixels = sum(np.prod(pictures.val.labels(index).size) for index in chosen) / 1e6
    rounds = []
    for _ in tqdm(range(1 + options.rounds), desc="times", leave=False):
        times = [[contender.seconds(index) for contender in contenders] for index in chosen]
        rounds.append(np.sum(times, axis=0) / megapixels)
    return [f"{statistics.median(column):.3g}" for column in zip(*rounds[1:], strict=True)]


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options = dataclasses.replace(
        options,
        python_stardist=options.python_stardist.absolute(),  # not resolved: a virtual environment's is a link
        python_cellpose=options.python_cellpose.absolute(),
    )
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = prepare(options)
    lines = [f"{machine()}; python -m benchmarks.peers {' '.join(sys.argv[1:])}"]
    lines.append(f"{len(pictures.val)} validation pictures of {options.source}; classes are taken as one.")
    with stardist(options, pictures) as (first, about_first), cellpose(options, pictures) as (second, about_second):
        peers = [peer for peer in (first, second) if peer is not None]
        contenders, about_ours = our_contenders(options, pictures)
        contenders += peers
        scores = [accuracy(contender, pictures) for contender in contenders]
        times = seconds_per_megapixel(contenders, pictures, options)
    rows = [[one.name, *own, taken] for one, own, taken in zip(contenders, scores, times, strict=True)]
    columns = [f"TP/(TP+FP+FN) at {iou:g}" for iou in AT.values()]
    lines += [table(["model", *columns, "seconds per megapixel"], rows), about_ours, about_first, about_second]
    text = "\n\n".join(lines) + "\n"
    (options.out / "report.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
