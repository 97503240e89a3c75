"""Models of others: what in a transformers folder or hub name could run code of its writer is refused unread."""

from pathlib import Path
from typing import Any

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_foreign(source: str, **options: Any) -> None:
    """Refuse pickled weights, and a configuration that names attention kernels of the hub.

    transformers asks nobody before it downloads and runs such a kernel, where the package `kernels` is installed. Code
    of a model itself (auto_map) is left to ``trust_remote_code=False``.

    Args:
        source: a folder or a hub name.
        options: of ``get_config_dict``.

    Raises: ValueError naming the file or key.
    """
    _check_weights(Path(source))
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


def _check_weights(folder: Path) -> None:
    if not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json")):
        return
    for file in sorted(file for pattern in _PICKLED for file in folder.glob(pattern)):
        raise ValueError(f"{file.name}: pickled weights are not read; valid: safetensors, or a .gguf file")
