"""Contrastive image–text models: a ViT and CLIP's text tower under one ``VisionTextDualEncoderModel``."""

import math

import torch
from torch import nn

from natattn.models.pretrained import SDPA
from natattn.models.settings import ModelSettings, SizeSettings
from natattn.models.vit import encoder_sizes, vit_config


def build_dual_encoder(
    model: ModelSettings,
    size: SizeSettings,
    *,
    image_size: int,
    channels: int,
    patch_size: int,
    vocab_size: int,
    context: int,
    end_token_id: int,
    initial_temperature: float,
    seed: int,
) -> nn.Module:
    """Build both towers of the run's size in float32 on the CPU, with plain softmax attention.

    The vision tower is bidirectional. The text tower is causal, and its state at the end token represents the caption
    (Radford et al. 2021, 2.4). Images and captions are projected to vectors of the towers' width, whose cosines divided
    by a learned temperature are the logits. The same arguments give the same weights. The text tower is initialised as
    CLIP is, by its width and depth (``size.initializer_range`` affects the vision tower only), and has dropout on the
    attention weights only.

    Args:
        context: tokens of the longest caption, its end included.
        initial_temperature: of the logits.

    Raises: UserError for patches that do not fill the image.
    """
    from transformers import CLIPTextConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    vision = vit_config(model, size, image_size=image_size, channels=channels, patch_size=patch_size)
    text = CLIPTextConfig(
        **encoder_sizes(size),
        vocab_size=vocab_size,
        projection_dim=vision.hidden_size,
        max_position_embeddings=context,
        bos_token_id=end_token_id,
        eos_token_id=end_token_id,
        pad_token_id=end_token_id,
        attention_dropout=model.dropout,
        hidden_act="gelu_pytorch_tanh",
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, text, projection_dim=vision.hidden_size, logit_scale_init_value=-math.log(initial_temperature)
    )
    config._attn_implementation = SDPA
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTextDualEncoderModel(config)
