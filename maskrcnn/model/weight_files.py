"""Weight files: download, checks for damage, and reading without running code from them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import urlparse

import torch
from torch import Tensor

from maskrcnn.errors import InputError

State = dict[str, Tensor]

DIGEST = "sha256"
"""Metadata entry of a safetensors file with the checksum of everything else."""

_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


def local_file(source: str | os.PathLike[str]) -> Path:
    """The local file of ``source``, a path or a URL; URLs are downloaded once and cached.

    Raises InputError if it cannot be downloaded, or does not match the hash in its name.
    """
    return _download(str(source)) if "://" in str(source) else Path(source)


def read_file(path: Path) -> Any:
    """Read a weight file, tensors on the CPU; the file extension determines the format.

    ``.safetensors``: a dict of tensors, or a checkpoint of :func:`maskrcnn.checkpoint.pack_checkpoint`, with tensors in
    float32 as its ``model``; ``.pkl``: numpy arrays in dicts and lists; else a file of ``torch.save``.

    Raises:
        Exception: of many kinds, if the file is damaged, has another format, or contains code.
    """
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        if "description" not in metadata:
            return state
        weights = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        return {**json.loads(metadata["description"]), "format": metadata.get("format"), "model": weights}
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            return _NumpyUnpickler(file, encoding="latin1").load()
    return read_torch(path)


def read_torch(path: Path) -> Any:
    """Read a file of ``torch.save``, comparing the checksums of its archive entries, which ``torch.load`` ignores.

    Raises the libraries' exceptions, and ValueError for a wrong checksum."""
    if zipfile.is_zipfile(path):  # files of PyTorch before 1.6 are not
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"damaged: the checksum of its entry {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises the library's exceptions, and ValueError if the file has a checksum (:func:`digest`) and it is wrong.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if DIGEST in metadata and metadata[DIGEST] != digest(state, metadata):
        raise ValueError("damaged: its checksum is wrong")
    return state, metadata


def digest(state: State, metadata: Mapping[str, str]) -> str:
    """SHA-256 of the metadata without :data:`DIGEST`, and of the names, dtypes, shapes and values of all tensors."""
    total = hashlib.sha256(json.dumps({k: v for k, v in metadata.items() if k != DIGEST}, sort_keys=True).encode())
    for key in sorted(state):
        value = state[key]
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def is_weight(value: object) -> TypeGuard[Tensor]:
    """Whether ``value`` is a tensor that can be a layer's weight: dense, real, on the CPU."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_complex())
    )


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles dicts of numpy arrays only, since pickles can run arbitrary code."""

    _ALLOWED = frozenset(
        (module, name)
        for core in (
            "numpy",
            "numpy.core.multiarray",
            "numpy._core.multiarray",
            "numpy.core.numeric",
            "numpy._core.numeric",
        )
        for module, name in (
            (core, "ndarray"),
            (core, "dtype"),
            (core, "_reconstruct"),
            (core, "scalar"),
            (core, "_frombuffer"),
        )
    ) | {("_codecs", "encode"), ("collections", "OrderedDict")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}; only numpy arrays are read")
        return super().find_class(module, name)


def _download(url: str) -> Path:
    name = Path(urlparse(url).path).name
    match = _HASH.search(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / name
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=match[1] if match else None)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{url}: cannot be downloaded: {error}") from error
    elif match and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(match[1]):
        raise InputError(f"{path}: its hash does not match its name; delete the file to download it again")
    return path
