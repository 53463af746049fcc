"""Arithmetic that both backends share, against its definition."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path


def test_no_sampling_point_on_the_map_is_left_out(tmp_path: Path) -> None:
    """``RoIAxis::points_on_map`` cuts huge RoIs to the map: all points beside its range have weight 0."""
    library = tmp_path / "libgeometry.so"
    source = Path(__file__).parent / "geometry_test.cpp"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off"]
    subprocess.run(["g++", *flags, str(source), "-o", str(library)], check=True)
    count = ctypes.CDLL(str(library)).count_wrong_axes
    count.argtypes, count.restype = [ctypes.c_int64, ctypes.c_int64], ctypes.c_int64
    assert count(0, 30_000) == 0
