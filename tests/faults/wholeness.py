"""What must hold of every folder at every moment, whatever happened to the process that wrote it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors import safe_open

from natattn.data.text.tokenized import _read_splits
from natattn.data.text.tokenizers import load_bpe
from natattn.tracking.metrics_file import read_metrics
from natattn.training.checkpoint import find_fault
from natattn.training.run_folder import config_hash
from natattn.training.settings import CHANGEABLE


@dataclass(frozen=True)
class Undisturbed:
    """A run that was never stopped, and the token cache that it filled."""

    folder: Path
    cache: Path


def weights(folder: Path) -> dict[str, str]:
    """Of every exported model, its hash."""
    paths = sorted(folder.glob("arms/*/model/model.safetensors"))
    return {path.parent.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_whole(place: Path) -> int:
    """Everything below that has a final name is whole; how many files were looked at."""
    files = [path for path in place.rglob("*") if path.is_file() and not _is_temporary(path.relative_to(place))]
    for path in files:
        _check_file(path)
    for folder in [path for path in place.rglob("*") if path.is_dir() and not _is_temporary(path.relative_to(place))]:
        _check_folder(folder)
    return len(files)


def _is_temporary(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check_file(path: Path) -> None:
    match path.suffix:
        case ".json":
            json.loads(path.read_text(encoding="utf-8"))
        case ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    file.get_tensor(name)
        case ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), path
        case ".html":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path
        case ".jsonl":
            read_metrics(path)
    if path.name == "config.yaml" and (path.parent / "run.json").exists():
        first, _, text = path.read_text(encoding="utf-8").partition("\n")
        digest = config_hash(yaml.safe_load(text), without=CHANGEABLE)
        assert first == f"# sha256 {digest}"
        assert json.loads((path.parent / "run.json").read_text())["config_hash"] == digest


def _check_folder(folder: Path) -> None:
    if folder.parent.name == "checkpoints":
        assert find_fault(folder) is None, (folder, find_fault(folder))
    elif folder.parent.name == "tokens" and (folder / "meta.json").exists():
        assert _read_splits(folder) is not None, folder
    elif folder.parent.name == "tokenizers" and (folder / "tokenizer.json").exists():
        assert load_bpe(folder) is not None, folder
    elif folder.name == "model" and folder.parent.parent.name == "arms":
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names, folder


def leftovers(place: Path) -> list[str]:
    """Temporary files and folders, and locks."""
    return sorted(
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.name.startswith((".writing-", ".retired-")) or path.suffix == ".tmp" or path.name == "run.lock"
    )
