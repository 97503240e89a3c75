"""Refusal of untrusted model folders and hub names that could run their author's code."""

from pathlib import Path
from typing import Any

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_trust(source: str, **options: Any) -> None:
    """Refuse pickled weights, and a configuration that names attention kernels of the hub, without reading the weights.

    transformers downloads and runs such a kernel without asking, if the package `kernels` is installed. Code of the
    model itself (auto_map) is left to ``trust_remote_code=False``.

    Args:
        source: a folder or a hub name.
        options: of ``get_config_dict``.

    Raises: ValueError naming the file or key.
    """
    folder = Path(source)
    is_safe = any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json"))
    if folder.is_dir() and not is_safe:
        for file in sorted(file for pattern in _PICKLED for file in folder.glob(pattern)):
            raise ValueError(f"{file.name}: pickled weights are not read; valid: safetensors, or a .gguf file")
    from transformers import PretrainedConfig

    content, _ = PretrainedConfig.get_config_dict(source, **options)
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if key.endswith("_implementation") and "/" in str(inner):
                    raise ValueError(f"its config.json names code of the hub, {key}={inner}; valid: eager or sdpa")
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
