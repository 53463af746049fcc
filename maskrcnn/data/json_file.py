"""Reading of JSON files from users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
