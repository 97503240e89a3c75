"""Vision transformers (ViT): the model of ``task=vision``, and the vision tower of ``task=multimodal``."""

from typing import Any

import torch
from torch import nn

from natattn.errors import UserError
from natattn.models.pretrained import SDPA, check_against_pretrained, check_init, load_pretrained
from natattn.models.settings import InitSettings, ModelSettings, PretrainedInit, SizeSettings, nearest_divisor


def encoder_sizes(size: SizeSettings) -> dict[str, Any]:
    """Return width, depth, heads and inner width by the names that the configurations of ViT and CLIP have for them.

    Raises: UserError as ``SizeSettings.resolved``.
    """
    sizes = size.resolved()
    return {
        "hidden_size": sizes["n_embd"],
        "num_hidden_layers": sizes["n_layer"],
        "num_attention_heads": sizes["n_head"],
        "intermediate_size": sizes["n_inner"] or 4 * sizes["n_embd"],
    }


def vit_config(model: ModelSettings, size: SizeSettings, *, image_size: int, channels: int, patch_size: int) -> Any:
    """Return the configuration of a ViT for square images in patches of ``patch_size`` pixels.

    Raises: UserError for patches that do not fill the image.
    """
    from transformers import ViTConfig

    if image_size % patch_size:
        raise UserError(
            f"task.patch_size={patch_size}: does not divide data.image_size={image_size}; "
            f"valid: a divisor, such as {nearest_divisor(image_size, patch_size)}"
        )
    return ViTConfig(
        **encoder_sizes(size),
        initializer_range=size.resolved()["initializer_range"],
        image_size=image_size,
        num_channels=channels,
        patch_size=patch_size,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.dropout,
        hidden_act="gelu_pytorch_tanh",  # one fused kernel, as in the language models
    )


def build_vit(
    model: ModelSettings,
    size: SizeSettings,
    init: InitSettings,
    *,
    image_size: int,
    channels: int,
    patch_size: int,
    classes: tuple[str, ...],
    seed: int,
) -> nn.Module:
    """Build a ``ViTForImageClassification`` in float32 on the CPU, with plain softmax attention, or load a classifier.

    The same arguments give the same weights. A pretrained model for other classes gets a new last layer.

    Raises: UserError if sizes, images and the pretrained model do not fit together.
    """
    names = dict(enumerate(classes))
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    if not isinstance(init, PretrainedInit):
        from transformers import ViTForImageClassification

        config = vit_config(model, size, image_size=image_size, channels=channels, patch_size=patch_size)
        config.id2label, config.label2id = labels["id2label"], labels["label2id"]
        config._attn_implementation = SDPA
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ViTForImageClassification(config)
    from transformers import AutoModelForImageClassification

    config = check_init(init)
    check_against_pretrained(size, config, init.path)
    _check_images(config, init.path, image_size=image_size, channels=channels, patch_size=patch_size)
    loaded: Any = load_pretrained(
        AutoModelForImageClassification, init, model.dropout, seed=seed, replaced=("classifier",), **labels
    )
    if list(config.id2label.values()) != list(classes):  # even for as many classes, the last layer is of others
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            loaded.classifier.weight.normal_(std=getattr(loaded.config, "initializer_range", 0.02))
            if loaded.classifier.bias is not None:
                loaded.classifier.bias.zero_()
    return loaded  # type: ignore[no-any-return]


def _check_images(config: Any, path: str, *, image_size: int, channels: int, patch_size: int) -> None:
    """Raise a UserError naming the key if a pretrained model reads other images."""
    wanted = {"data.image_size": (image_size, "image_size"), "task.patch_size": (patch_size, "patch_size")}
    for key, (value, name) in wanted.items():
        if getattr(config, name, None) not in (None, value, [value, value]):
            raise UserError(f"{key}={value}: the model at init.path={path} has {getattr(config, name)}; give that")
    if getattr(config, "num_channels", channels) != channels:
        raise UserError(
            f"data: {channels} channel{'s' * (channels > 1)}, the model at init.path={path} reads "
            f"{config.num_channels}; valid: images of {config.num_channels} channels"
        )
