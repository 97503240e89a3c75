"""Sizes → vision transformers (ViT): the model of ``task=vision``, and the vision tower of ``task=multimodal``."""

from typing import Any

import torch
from torch import nn

from natattn.config.messages import first_line
from natattn.errors import UserError
from natattn.models.gpt2 import (
    SDPA,
    InitSettings,
    ModelSettings,
    PretrainedInit,
    SizeSettings,
    check_against_pretrained,
    check_init,
    nearest_divisor,
    set_dropout,
    whole_size,
    without_progress_bars,
    without_reports,
)


def encoder_sizes(size: SizeSettings) -> dict[str, Any]:
    """Width, depth, heads and inner width as the configurations of ViT and CLIP name them.

    Raises: as ``whole_size``.
    """
    sizes = whole_size(size)
    return {
        "hidden_size": sizes["n_embd"],
        "num_hidden_layers": sizes["n_layer"],
        "num_attention_heads": sizes["n_head"],
        "intermediate_size": sizes["n_inner"] or 4 * sizes["n_embd"],
    }


def vit_config(model: ModelSettings, size: SizeSettings, *, image_size: int, channels: int, patch_size: int) -> Any:
    """The configuration of a ViT that reads square images in patches of ``patch_size`` pixels.

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
        initializer_range=whole_size(size)["initializer_range"],
        image_size=image_size,
        num_channels=channels,
        patch_size=patch_size,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.dropout,
        hidden_act="gelu_pytorch_tanh",  # as the language models have it, in one fused kernel
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
    """A ``ViTForImageClassification`` in float32 on the CPU with plain softmax attention, or a pretrained classifier.

    The same arguments give the same weights. A pretrained model for other classes gets a new last layer.

    Raises: UserError when sizes, images and the pretrained model do not fit together.
    """
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: index for index, name in enumerate(classes)}}
    if isinstance(init, PretrainedInit):
        return _load_classifier(
            model, size, init, image_size=image_size, channels=channels, patch_size=patch_size, labels=labels, seed=seed
        )
    from transformers import ViTForImageClassification

    config = vit_config(model, size, image_size=image_size, channels=channels, patch_size=patch_size)
    config.id2label, config.label2id = labels["id2label"], labels["label2id"]
    config._attn_implementation = SDPA
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def _forget_classes(model: Any, seed: int) -> None:
    """A new last layer: the old one knows other classes, if as many."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model.classifier.weight.normal_(std=getattr(model.config, "initializer_range", 0.02))
        if model.classifier.bias is not None:
            model.classifier.bias.zero_()


def _check_images(config: Any, path: str, *, image_size: int, channels: int, patch_size: int) -> None:
    """Raises: UserError naming the key, where a pretrained model reads other images."""
    wanted = {"data.image_size": (image_size, "image_size"), "task.patch_size": (patch_size, "patch_size")}
    for key, (own, name) in wanted.items():
        if getattr(config, name, None) not in (None, own, [own, own]):
            raise UserError(f"{key}={own}: the model at init.path={path} has {getattr(config, name)}; give that")
    if getattr(config, "num_channels", channels) != channels:
        raise UserError(
            f"data: {channels} channel{'s' * (channels > 1)}, the model at init.path={path} reads "
            f"{config.num_channels}; valid: images of {config.num_channels} channels"
        )


def _load_classifier(
    model: ModelSettings,
    size: SizeSettings,
    init: PretrainedInit,
    *,
    image_size: int,
    channels: int,
    patch_size: int,
    labels: dict[str, Any],
    seed: int,
) -> nn.Module:
    from transformers import AutoModelForImageClassification

    config = check_init(init)
    check_against_pretrained(size, config, init.path)
    _check_images(config, init.path, image_size=image_size, channels=channels, patch_size=patch_size)
    try:
        with without_progress_bars(), without_reports(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the new last layer, where there is one
            loaded, report = AutoModelForImageClassification.from_pretrained(
                init.path,
                use_safetensors=True,
                **labels,
                attn_implementation=SDPA,
                dtype=torch.float32,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a damaged file raises whatever its reader does
        raise UserError(f"init.path={init.path}: cannot be loaded: {first_line(error)}") from error
    lacking = [*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])]
    missing = sorted(name for name in lacking if not name.startswith("classifier"))
    if missing:
        raise UserError(
            f"init.path={init.path}: {len(missing)} weights are missing or do not fit, {missing[0]} among them"
        )
    if list(config.id2label.values()) != list(labels["id2label"].values()):
        _forget_classes(loaded, seed)
    set_dropout(loaded, model.dropout)
    built: nn.Module = loaded
    return built
