"""What may happen to a file on a disk."""

from pathlib import Path


def flip_a_byte(path: Path) -> None:
    """In the middle, and one bit of it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
