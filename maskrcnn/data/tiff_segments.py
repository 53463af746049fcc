"""Reads regions of a TIFF's pages, decoding only the strips or tiles that they need."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from imagecodecs import bitorder_decode

from maskrcnn.data.lzw import check_lzw
from maskrcnn.data.stored import Array, BlockCache
from maskrcnn.errors import InputError

_JPEG = (6, 7, 34892, 33007)  # TIFF compressions that store their tables separately


@dataclass
class OpenTiff:
    """An open TIFF with its cache of decoded segments; threads that read it take ``lock``."""

    tiff: tifffile.TiffFile
    path: Path
    lock: threading.RLock = field(default_factory=threading.RLock)
    cache: BlockCache = field(default_factory=BlockCache)

    def __post_init__(self) -> None:
        weakref.finalize(self, self.tiff.close)  # when its last picture is garbage collected


class Segments:
    """The planes of a series: its pages, or the samples of its pages if these are stored separately.

    Attributes:
        separate: whether each sample of a page is a plane.
    """

    def __init__(self, file: OpenTiff, number: tuple[int, int], series: Any) -> None:
        self.file, self.path, self.number = file, file.path, number  # of the series and the level, for the cache
        self.pages, self.keyframe = series.pages, series.keyframe
        self.maps: dict[str, Array] = {}
        page = self.keyframe
        if page.imagedepth > 1:
            raise InputError(f"{self.path}: a volume in one page, expected pictures of height x width")
        self.shape = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        self.separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and page.samplesperpixel > 1
        self.planes_per_page = page.samplesperpixel if self.separate else 1
        self.headless = len(self.pages) == 1 and series.size > page.size
        if self.headless and not (page.is_memmappable and page.is_contiguous):
            raise InputError(f"{self.path}: a compressed stack with one header, expected one per page")
        if self.headless and page.dataoffsets[0] + series.nbytes > page.parent.filehandle.size:
            raise InputError(f"{self.path}: truncated, its last pages are beyond the end of the file")

    def page_of(self, plane: int) -> tuple[Path, int]:
        """The file that holds a plane, and the index of its page in that file."""
        page = self.pages[0 if self.headless else plane // self.planes_per_page]
        path = Path(page.parent.filehandle.path)
        return self.path if os.path.realpath(path) == os.path.realpath(self.path) else path, page.index

    def region(self, plane: int, top: int, left: int, height: int, width: int) -> Array:
        """Pixels [height, width, samples] of one plane."""
        page = self.keyframe
        number, sample = divmod(plane, self.planes_per_page)
        if (mapped := self._mapped(number)) is not None:
            part = mapped[sample] if self.separate else mapped
            return np.asarray(part[top : top + height, left : left + width])
        columns, rows = -(-page.imagewidth // self.shape[1]), -(-page.imagelength // self.shape[0])
        out = np.zeros((height, width, 1 if self.separate else page.samplesperpixel), page.dtype)
        if page.nodata != 0:
            out[...] = page.nodata
        for row in range(top // self.shape[0], (top + height - 1) // self.shape[0] + 1):
            for column in range(left // self.shape[1], (left + width - 1) // self.shape[1] + 1):
                segment = self._segment(number, (sample * rows + row) * columns + column)
                if segment is None:
                    continue  # a hole of a sparse file
                y, x = row * self.shape[0], column * self.shape[1]
                y1, x1 = max(y, top), max(x, left)
                y2, x2 = min(y + segment.shape[0], top + height), min(x + segment.shape[1], left + width)
                out[y1 - top : y2 - top, x1 - left : x2 - left] = segment[y1 - y : y2 - y, x1 - x : x2 - x]
        return out

    def _mapped(self, number: int) -> Array | None:
        """An uncompressed page as a memory map. A stack above 4 GiB has one header, followed by all pages."""
        pages_before = number if self.headless else 0
        page = self.keyframe if self.headless else self.pages[number]
        if not (page.is_memmappable and page.is_contiguous):
            return None
        samples, rows, columns = (getattr(self.keyframe, n) for n in ("samplesperpixel", "imagelength", "imagewidth"))
        shape = (samples, rows, columns, 1) if self.separate else (rows, columns, samples)
        dtype = np.dtype(page.parent.byteorder + self.keyframe.dtype.char)
        file = page.parent.filehandle.path
        if file not in self.maps:
            self.maps[file] = np.memmap(file, np.uint8, "r")
        return np.ndarray(shape, dtype, self.maps[file], page.dataoffsets[0] + pages_before * self.keyframe.nbytes)

    def _segment(self, number: int, index: int) -> Array | None:
        return self.file.cache.get((self.number, number, index), lambda: self._decode(number, index))

    def _decode(self, number: int, index: int) -> Array | None:
        page = self.pages[number]
        # read the header before seeking to the segment: reading it moves the file's position
        offset, count, decode = page.dataoffsets[index], page.databytecounts[index], self.keyframe.decode
        if count == 0:
            return None
        tables = {}
        if self.keyframe.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": self.keyframe.jpegheader}
        content = _bytes_at(page.parent.filehandle, offset, count)
        if self.keyframe.compression == tifffile.COMPRESSION.LZW:
            check_lzw(bitorder_decode(content) if self.keyframe.fillorder == 2 else content)
        decoded = decode(content, index, **tables)[0]
        return None if decoded is None else decoded[0]


def _bytes_at(handle: tifffile.FileHandle, offset: int, count: int) -> bytes:
    """Read bytes of a file. Of a multi-file OME-TIFF, tifffile closes all files but the one that was opened."""
    closed = handle.closed
    if closed:
        handle.open()
    try:
        handle.seek(offset)
        return handle.read(count)
    finally:
        if closed:
            handle.close()
