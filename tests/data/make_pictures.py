"""Real picture files, and sets of `datasets`, for tests to read."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CARD = """---
configs:
- config_name: default
  data_files:
"""


def pixels(number: int, height: int = 6, width: int = 6, channels: int = 3) -> np.ndarray:
    """Uint8 [height, width, channels]: another picture for each number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png(number: int, height: int = 6, width: int = 6) -> bytes:
    """A PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels(number, height, width)).save(file, "png")
    return file.getvalue()


def write_png(path: Path, number: int, height: int = 6, width: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number, height, width))
    return path


def write_classes(folder: Path, counts: Mapping[str, int], first: int = 0) -> Path:
    """A folder with a sub-folder for each class and that many different pictures in it."""
    number = first
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            write_png(folder / name / f"{number}.png", number)
            number += 1
    return folder


def write_lines(path: Path, entries: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return path


def write_tables(folder: Path, tables: Mapping[str, Any]) -> Path:
    """A folder that datasets.load_dataset reads, with a parquet file for each split, written by datasets itself."""
    card = CARD
    for split, table in tables.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(folder / "data" / f"{split}.parquet")
        card += f"  - {{split: {split}, path: data/{split}.parquet}}\n"
    (folder / "README.md").write_text(card + "---\n")
    return folder
