"""The text files of a study: beginnings of what the user gives, or made by a rule, the same wherever they are made."""

import os
import random
from pathlib import Path

from natattn.errors import UserError
from natattn.reproduce.settings import CorpusSettings, Excerpt, Repeats
from natattn.storage.atomic import replacing

# "#" to "z": printable ASCII without the space; no two lines are alike but by chance.
FIRST_CHARACTER, LAST_CHARACTER = 35, 122


def file_overrides(corpus: CorpusSettings, wikitext: str | None, folder: Path) -> list[str] | None:
    """Overrides that name the corpus's files, which are written to ``folder`` where they are not there yet.

    Returns: None where a file is of a text that was not given.
    Raises: UserError for a text that is not in its folder.
    """
    found = []
    for key, source in corpus.files.items():
        if isinstance(source, Repeats):
            content = repeated_lines(source).encode()
            name = f"repeats_{source.lines}x{source.length}_{source.seed}.txt"
        elif wikitext is None:
            return None
        else:
            content, name = _excerpt(source, Path(os.path.expanduser(wikitext)))
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            _write(path, content)
        found.append(f"data.{key}={path}")
    return found


def repeated_lines(settings: Repeats) -> str:
    """Lines of random characters, each written twice: nothing predicts the first copy, everything the second."""
    draw = random.Random(settings.seed)
    lines = []
    for _ in range(settings.lines):
        word = "".join(chr(draw.randint(FIRST_CHARACTER, LAST_CHARACTER)) for _ in range(settings.length))
        lines.append(word + word + "\n")
    return "".join(lines)


def _excerpt(source: Excerpt, folder: Path) -> tuple[bytes, str]:
    path = folder / source.of
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"wikitext={folder}: {source.of} cannot be read: {error.strerror}") from error
    stem, suffix = Path(source.of).stem, ""
    if source.lines is not None:
        content = b"".join(content.splitlines(keepends=True)[: source.lines])
        suffix += f"_{source.lines}_lines"
    if source.bytes is not None:
        content = content[: source.bytes]
        suffix += f"_{source.bytes}_bytes"
    return content, f"{stem}{suffix}.txt"


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written to: {error.strerror}") from error
