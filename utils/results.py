"""Results as strict JSON files."""

import json
from pathlib import Path
from typing import Any

from utils.files import atomic_write


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write `content` as strict JSON, atomically. Creates the folder.

    Raises:
        ValueError: it holds NaN or an infinity, for which JSON has no number.
        OSError: the disk, the folder or the permissions do not allow it.
    """
    text = json.dumps(content, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text + "\n")
