"""Reading JSON that users give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskrcnn.errors import InputError


def read_json(path: Path) -> Any:
    """The contents of a JSON file in UTF-8, -16 or -32, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
