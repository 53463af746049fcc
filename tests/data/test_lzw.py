"""LZW data that imagecodecs must not decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from maskrcnn.data.lzw import check_lzw
from maskrcnn.errors import InputError
from tests.data.picture_files import BITS, COMPRESSION, HEIGHT, WIDTH, only, write_tiff

CLEAR, END = 256, 257
FILL_ORDER = 266


def widths(least_first: bool) -> Iterator[int]:
    """The bits of the codes after a clear code."""
    yield 9
    size = 258
    while True:
        yield 9 + sum(size + (not least_first) >= limit for limit in (512, 1024, 2048))
        size += 1


def pack(codes: Sequence[int], least_first: bool = False) -> bytes:
    text, width = "", widths(least_first)
    for code in codes:
        bits = f"{code:0{next(width)}b}"
        text += bits[::-1] if least_first else bits
        if code == CLEAR:
            width = widths(least_first)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8][:: -1 if least_first else 1], 2) for i in range(0, len(text), 8))


def encode(values: bytes) -> list[int]:
    """The codes of an encoder that clears its table when all codes of 12 bits are taken."""
    codes, table, word = [CLEAR], {bytes([i]): i for i in range(256)}, b""
    for i in range(len(values)):
        longer = word + values[i : i + 1]
        if longer in table:
            word = longer
            continue
        codes.append(table[word])
        table[longer] = len(table) + 2
        word = values[i : i + 1]
        if len(table) + 2 == 4094:
            codes.append(CLEAR)
            table = {bytes([i]): i for i in range(256)}
    return [*codes, table[word], END]


def is_good(data: bytes, least_first: bool) -> bool:
    """Reads one code after the other."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little" if least_first else "big")
    position, width, before = 0, widths(least_first), -1
    while True:
        size = next(width)
        code = bits[position : position + size]
        if len(code) < size:
            return True
        value = int("".join(map(str, code[::-1] if least_first else code)), 2)
        if value == END:
            return True
        if before in (-1, CLEAR) and value > END:
            return False
        if value == CLEAR:
            width = widths(least_first)
        position, before = position + size, value


@pytest.mark.parametrize("least_first", [False, True])
@pytest.mark.parametrize("levels", [1, 3, 256])
def test_undamaged_data_pass(levels: int, least_first: bool) -> None:
    values = np.random.default_rng(levels).integers(0, levels, 30_000).astype(np.uint8).tobytes()
    data = pack(encode(values), least_first)
    assert imagecodecs.lzw_decode(data) == values  # so the data are what the decoder takes them for
    check_lzw(data)
    check_lzw(imagecodecs.lzw_encode(values))


@pytest.mark.parametrize("least_first", [False, True])
@pytest.mark.parametrize(
    ("codes", "good"),
    [
        ([CLEAR, 65, 66, 258, END], True),
        ([CLEAR, CLEAR, CLEAR, 65, END], True),
        ([CLEAR, END], True),
        ([CLEAR, 65, END, CLEAR, 300], True),  # after the end
        ([CLEAR, 300, 66, END], False),
        ([CLEAR, 258], False),
        ([CLEAR, CLEAR, 511], False),
        ([CLEAR, *range(256), 65, *range(256), CLEAR, 65, CLEAR, 258], False),  # behind codes of 10 bits
    ],
)
def test_codes_that_are_in_no_table(codes: list[int], good: bool, least_first: bool) -> None:
    data = pack(codes, least_first)
    assert is_good(data, least_first) == good
    if good:
        check_lzw(data)
    else:
        with pytest.raises(ValueError, match="damaged LZW data"):
            check_lzw(data)


@pytest.mark.parametrize("least_first", [False, True])
def test_damaged_data(least_first: bool) -> None:
    rng, refused = np.random.default_rng(0), 0
    values = rng.integers(0, 256, 9000).astype(np.uint8).tobytes()
    whole = pack(encode(values), least_first)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(2, len(whole))])
        for place in rng.integers(2, len(data), 2 if len(data) > 2 else 0):
            data[place : place + 2] = pack([CLEAR, 300])[:2] if rng.random() < 0.5 else bytes([rng.integers(256)])
        good = is_good(bytes(data), least_first)
        try:
            check_lzw(bytes(data))
        except ValueError:
            refused += 1
            assert not good
        else:
            assert good
    assert 5 < refused < 55


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\0", b"\0\1", b"\x80\x40"])
def test_a_few_bytes(data: bytes) -> None:
    check_lzw(data)


@pytest.mark.parametrize("reversed_bits", [False, True])
@pytest.mark.parametrize("good", [False, True])
def test_a_damaged_tiff_does_not_reach_the_decoder(tmp_path: Path, good: bool, reversed_bits: bool) -> None:
    """The decoder crashed where other data had been in the memory of its table."""
    strip = pack([CLEAR, 65 if good else 300, 66, 67, 68, END])
    if reversed_bits:
        strip = imagecodecs.bitorder_encode(strip)
    tags = {WIDTH: 2, HEIGHT: 2, BITS: 8, COMPRESSION: 5, FILL_ORDER: 1 + reversed_bits}
    path = write_tiff(tmp_path / "a.tif", strip, tags)
    if good:
        assert only(path).raw(0, 0, 2, 2).reshape(-1).tolist() == [65, 66, 67, 68]
    else:
        with pytest.raises(InputError, match=r"a\.tif.*damaged LZW data"):
            only(path).raw(0, 0, 2, 2)
