"""Training of StarDist from scratch, and its predictions: part of ``python -m benchmarks.peers``.

    python -m benchmarks.peer_stardist train DIR HOURS      resumes if it was stopped
    python -m benchmarks.peer_stardist predict DIR

Everything is as StarDist has it by default and in its example notebook for the pictures of the Data Science Bowl 2018
(examples/2D/2_training.ipynb): network, losses, learning rate, normalisation, augmentation, thresholds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from csbdeep.utils import normalize
from keras.callbacks import Callback, ModelCheckpoint, ReduceLROnPlateau
from stardist import fill_label_holes
from stardist.models import Config2D, StarDist2D

from benchmarks.peer_process import Answers, Found

MODEL = "model"
STATE = "state.npz"
Pair = tuple[np.ndarray, np.ndarray]


def normalized(image: np.ndarray) -> np.ndarray:
    """float32 [H, W], 0 at the 1st percentile and 1 at the 99.8th."""
    return normalize(image, 1, 99.8, axis=(0, 1))


def read(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures and label images as StarDist trains on them."""
    images, labels = [], []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as arrays:
            images.append(normalized(arrays["image"]))
            labels.append(fill_label_holes(arrays["labels"]))
    return images, labels


def augment(image: np.ndarray, labels: np.ndarray) -> Pair:
    """Flips, rotations, changes of brightness and contrast, and noise."""
    axes = np.random.permutation(2)  # noqa: NPY002  StarDist seeds NumPy's global generator, and so do we
    image, labels = image.transpose(axes), labels.transpose(axes)
    for axis in (0, 1):
        if np.random.rand() > 0.5:  # noqa: NPY002
            image, labels = np.flip(image, axis), np.flip(labels, axis)
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)  # noqa: NPY002
    noise = 0.02 * np.random.uniform(0, 1) * np.random.normal(0, 1, image.shape)  # noqa: NPY002
    return image + noise, labels


class Progress(Callback):
    """Stops training when its time is over, and saves its state after each epoch, to resume in another process.

    Keras forgets all but the weights: of its callbacks, which come before this one, the state is kept as well.
    """

    def __init__(self, path: Path, callbacks: list[Callback], hours: float) -> None:
        super().__init__()
        self._path, self._limit = path, 3600 * hours
        self._plateau = next(callback for callback in callbacks if isinstance(callback, ReduceLROnPlateau))
        self._checkpoint = next(callback for callback in callbacks if isinstance(callback, ModelCheckpoint))
        self._epochs, self._seconds = 0, 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        if self._path.is_file():
            self._restore()
        self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._count()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._count()
        self._epochs += 1
        self._save()

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now
        self.model.stop_training = self._seconds >= self._limit

    def _save(self) -> None:
        optimizer: dict[str, Any] = {}
        self.model.optimizer.save_own_variables(optimizer)
        progress = {
            "epochs": self._epochs,
            "steps": int(self.model.optimizer.iterations.numpy()),
            "seconds": self._seconds,
            "learning_rate": float(self.model.optimizer.learning_rate.numpy()),
            "plateau": {key: getattr(self._plateau, key) for key in ("best", "wait", "cooldown_counter")},
            "best": self._checkpoint.best,
        }
        arrays = {f"optimizer/{key}": value for key, value in optimizer.items()}
        arrays |= {f"weights/{index}": value for index, value in enumerate(self.model.get_weights())}
        beside = self._path.with_suffix(".part.npz")
        np.savez(beside, progress=np.array(json.dumps(progress, default=float)), **arrays)
        os.replace(beside, self._path)

    def _restore(self) -> None:
        progress = progress_of(self._path)
        self._epochs, self._seconds = progress["epochs"], progress["seconds"]
        self._checkpoint.best = progress["best"]
        for key, value in progress["plateau"].items():
            setattr(self._plateau, key, value)
        with np.load(self._path) as state:
            self.model.set_weights([state[f"weights/{index}"] for index in range(len(self.model.weights))])
            names = [name for name in state.files if name.startswith("optimizer/")]
            self.model.optimizer.build(self.model.trainable_variables)
            self.model.optimizer.load_own_variables({name.removeprefix("optimizer/"): state[name] for name in names})


def progress_of(path: Path) -> dict[str, Any]:
    """What a run has done so far."""
    if not path.is_file():
        return {"epochs": 0, "steps": 0, "seconds": 0.0}
    with np.load(path) as state:
        return json.loads(str(state["progress"]))


def train(folder: Path, hours: float) -> None:
    """Train for ``hours`` in all, at most the 400 epochs of StarDist; then fit the thresholds on the validation set."""
    state, thresholds = (folder / MODEL / name for name in (STATE, "thresholds.json"))
    done = progress_of(state)
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=1, train_tensorboard=False)
    epochs = config.train_epochs - done["epochs"]
    over = done["seconds"] >= 3600 * hours or epochs <= 0
    if over and thresholds.is_file():
        return
    images, labels = read(folder / "data" / "val")
    if over:
        model = StarDist2D(None, name=MODEL, basedir=str(folder))
    else:
        thresholds.unlink(missing_ok=True)  # those of other weights
        model = StarDist2D(config, name=MODEL, basedir=str(folder))
        model.prepare_for_training()
        model.callbacks.append(Progress(state, model.callbacks, hours))
        pictures = read(folder / "data" / "train")
        model.train(*pictures, (images, labels), augmenter=augment, seed=done["epochs"], epochs=epochs)
    model.optimize_thresholds(images, labels)


def predict(folder: Path) -> None:
    """Answer with the cells of pictures, by the weights of the lowest validation loss, as StarDist does."""
    answers = Answers()
    model = StarDist2D(None, name=MODEL, basedir=str(folder))

    def find(image: np.ndarray, diameter: float | None) -> Found:
        labels, cells = model.predict_instances(normalized(image))
        return labels, cells["prob"]

    progress = progress_of(folder / MODEL / STATE)
    answers.serve(
        find,
        **progress,
        epochs_at_most=model.config.train_epochs,
        steps_per_epoch=model.config.train_steps_per_epoch,
        thresholds=model.thresholds._asdict(),
    )


def main() -> None:
    command, folder, *rest = sys.argv[1:]
    if command == "train":
        train(Path(folder), float(rest[0]))
    elif command == "predict":
        predict(Path(folder))
    else:
        raise SystemExit(f"error: {command}: expected train or predict")


if __name__ == "__main__":
    main()
