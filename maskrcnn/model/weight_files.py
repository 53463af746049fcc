"""Files of weights: found or downloaded, checked for damage, and read without running any code of theirs."""

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
"""The entry of a safetensors file's metadata with the checksum of everything else."""

_HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


def local_file(source: str | os.PathLike[str]) -> Path:
    """The file that ``source`` names; a URL is downloaded first, unless an earlier call did.

    Raises InputError where it cannot be downloaded, or is another file than the hash in its name says.
    """
    return _download(str(source)) if "://" in str(source) else Path(source)


def read_file(path: Path) -> Any:
    """The contents of a file of weights, tensors on the CPU; the format is told by the ending.

    ``.safetensors``: a dict of tensors, or what :func:`maskrcnn.checkpoint.pack_checkpoint` described, with the tensors
    in float32 as its ``model``; ``.pkl``: numpy arrays in dicts and lists; else what ``torch.save`` wrote.

    Raises:
        Exception: of many kinds, for a file that is damaged, of another format, or asks for code to be run.
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
    """What ``torch.save`` wrote, its checksums compared: the archive has one of each entry, which ``torch.load``
    ignores. Raises what the libraries raise, and ValueError for another checksum."""
    if zipfile.is_zipfile(path):  # PyTorch before 1.6 wrote no archive
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"damaged: {damaged} in it has another checksum than when it was written")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises what the library raises, and ValueError where the file has a checksum (:func:`digest`) and it is another.
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if DIGEST in metadata and metadata[DIGEST] != digest(state, metadata):
        raise ValueError("damaged: it has another checksum than when it was written")
    return state, metadata


def digest(state: State, metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, types, shapes and values of all tensors and the metadata, :data:`DIGEST` itself left out."""
    total = hashlib.sha256(json.dumps({k: v for k, v in metadata.items() if k != DIGEST}, sort_keys=True).encode())
    for key in sorted(state):
        value = state[key]
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def is_weight(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor that a layer can take: dense, on the CPU, of real numbers."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_complex())
    )


class _NumpyUnpickler(pickle.Unpickler):
    """Reads pickles of dicts of numpy arrays and refuses all else: a pickle can run any code."""

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
        raise InputError(f"{path}: the hash is not that of its name; delete the file to download it again")
    return path
