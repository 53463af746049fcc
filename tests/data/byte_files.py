"""ND2 and LIF files, written byte by byte, since no library writes them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_lif(path: Path, images: Sequence[np.ndarray], pixel_size: float = 0.5) -> Path:
    """A LIF as LAS X writes it: XML in UTF-16, then the pixels of each image [t, z, c, y, x]."""
    elements, blocks = "", b""
    for number, pixels in enumerate(images, start=1):
        strides, sizes = (dict(zip("tzcyx", values, strict=True)) for values in (pixels.strides, pixels.shape))
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{8 * pixels.itemsize}" LUTName="Gray" '
            f'NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" IsLUTInverted="0" BytesInc="{c * strides["c"]}" '
            'BitInc="0"/>'
            for c in range(sizes["c"])
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{code}" NumberOfElements="{sizes[axis]}" Origin="0" '
            f'Length="{(sizes[axis] - 1) * pixel_size * 1e-6}" Unit="m" BitInc="0" BytesInc="{strides[axis]}"/>'
            for code, axis in ((1, "x"), (2, "y"), (3, "z"), (4, "t"))
            if axis in "xy" or sizes[axis] > 1
        )
        elements += (
            f'<Element Name="image{number}" Visibility="1" UniqueID="{number}"><Data><Image TextDescription="">'
            f"<ImageDescription><Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions>"
            f'</ImageDescription></Image></Data><Memory Size="{pixels.nbytes}" MemoryBlockID="MemBlock_{number}"/>'
            "</Element>"
        )
        name = f"MemBlock_{number}".encode("utf-16-le")
        head = struct.pack("<BQBI", 0x2A, pixels.nbytes, 0x2A, len(name) // 2) + name
        blocks += struct.pack("<II", 0x70, len(head)) + head + pixels.tobytes()
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="project" Visibility="1" UniqueID="0">'
        f'<Memory Size="0" MemoryBlockID="MemBlock_0"/><Children>{elements}</Children></Element>'
        "</LMSDataContainerHeader>"
    ).encode("utf-16-le")
    path.write_bytes(struct.pack("<IIBI", 0x70, len(xml) + 5, 0x2A, len(xml) // 2) + xml + blocks)
    return path


def write_nd2(
    path: Path, frames: np.ndarray, positions: int = 1, pixel_size: float = 0.5, packed: bool = False
) -> Path:
    """An ND2 as NIS-Elements 4 and 5 write it.

    Chunks with a name and data, then a map of their places. Metadata are "lite variants": a tree of typed values with
    names in UTF-16. The order of the loops is time, then position, each with ``frames`` [t * positions, y, x, c].
    """
    count, height, width, channels = frames.shape
    times = count // positions
    kind = {"uiBpcInMemory": 8 * frames.itemsize, "uiBpcSignificant": 8 * frames.itemsize}
    attributes = {
        "SLxImageAttributes": {
            "uiWidth": width,
            "uiWidthBytes": width * channels * frames.itemsize,
            "uiHeight": height,
            "uiComp": channels,
            **kind,
            "uiSequenceCount": count,
            "eCompression": 0 if packed else 2,
            "dCompressionParam": 0.0,
            "uiVirtualComponents": channels,
        }
    }
    points = {
        "uiCount": positions,
        "Points": {f"i{n:010d}": {"dPosX": float(n), "dPosY": 0.0} for n in range(positions)},
    }
    inner = {"i0000000000": {"eType": 2, "uLoopPars": points, "pItemValid": [1] * positions}}
    experiment = {
        "SLxExperiment": {
            "eType": 1,
            "uLoopPars": {"uiCount": times, "dStart": 0.0, "dPeriod": 1000.0, "dDuration": 0.0},
            "ppNextLevelEx": inner if positions > 1 else {},
        }
    }
    if times * positions == 1:
        experiment = {}
    planes = {
        f"a{n}": {"sDescription": f"dye{n}", "uiCompCount": 1, "uiColor": 255, "pFluorescentProbe": {"m_sName": "x"}}
        for n in range(channels)
    }
    picture = {
        "SLxPictureMetadata": {
            "dCalibration": pixel_size,
            "bCalibrated": pixel_size > 0,
            "dAspect": 1.0,
            "sPicturePlanes": {"uiCount": channels, "uiCompCount": channels, "sPlaneNew": planes},
        }
    }
    chunks = [(b"ImageAttributesLV!", _variant(attributes)), (b"ImageMetadataSeqLV|0!", _variant(picture))]
    if experiment:
        chunks.append((b"ImageMetadataLV!", _variant(experiment)))
    for number, frame in enumerate(frames):
        data = frame.tobytes()
        chunks.append(
            (f"ImageDataSeq|{number}!".encode(), struct.pack("<d", number) + (zlib.compress(data) if packed else data))
        )
    signature = b"Ver3.0".ljust(64, b"\0")
    content = b""
    places = []
    for name, data in [(b"ND2 FILE SIGNATURE CHUNK NAME01!", signature), *chunks]:
        places.append((name, len(content), len(data)))
        content += _chunk(name, data)
    table = b"".join(name + struct.pack("<QQ", place, size) for name, place, size in places)
    table += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(content))
    path.write_bytes(content + _chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", table))
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    shift = len(name) if name.startswith(b"ND2 FILE SIGNATURE") else 4072  # frames begin 4096 bytes after their chunk
    return struct.pack("<IIQ", 0x0ABECEDA, shift, len(data)) + name.ljust(shift, b"\0") + data


def _variant(values: dict[str, Any]) -> bytes:
    """A lite variant: for each value its type, the length of its name, its name, and itself."""
    out = b""
    for name, value in values.items():
        code, data = _typed(value)
        head = struct.pack("<BB", code, len(name) + 1) + (name + "\0").encode("utf-16-le")
        if isinstance(value, dict):  # the number of values and the length of all, then an index of them
            data = struct.pack("<IQ", len(value), len(head) + 12 + len(data)) + data + bytes(8 * len(value))
        out += head + data
    return out


def _typed(value: Any) -> tuple[int, bytes]:
    """The code of a value's type, and its bytes."""
    if isinstance(value, dict):
        return 11, _variant(value)
    if isinstance(value, list):
        return 9, struct.pack("<Q", len(value)) + bytes(value)
    if isinstance(value, bool):
        return 1, struct.pack("<B", value)
    if isinstance(value, int):
        return 3, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<d", value)
    return 8, (value + "\0").encode("utf-16-le")
