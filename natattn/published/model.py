"""The published model: a GPT-2 whose blocks are the paper's, bidirectional (LEAKY) as published or causal.

What makes it differ from GPT-2 is in its saved configuration: it has a model type of its own, so that transformers
cannot take a saved one for a GPT-2 and fill its blocks with random weights.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.models.gpt2.modeling_gpt2 import GPT2Block, GPT2PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from natattn.attention.types.natural import NATURAL
from natattn.published.attention import GPT2NaturalAttentionBlock, NaturalAttention


class PublishedConfig(GPT2Config):  # type: ignore[no-untyped-call]
    """GPT-2's configuration and whether the model is causal, which the published one is not.

    ``attn_pdrop`` and ``resid_pdrop`` have no effect: the blocks have no dropout.
    """

    model_type = "natattn-published"
    is_causal: bool = False


class PublishedModel(GPT2Model):  # type: ignore[no-untyped-call]
    """Embeddings and final norm of GPT-2 around the paper's blocks."""

    config_class = PublishedConfig
    _no_split_modules = ["GPT2NaturalAttentionBlock"]  # noqa: RUF012 - as transformers declares it
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": GPT2Block,
        "attentions": OutputRecorder(NaturalAttention, layer_name=".attn", index=1),
    }

    def __init__(self, config: PublishedConfig) -> None:
        # First all of GPT-2, so that the embeddings are those of a GPT-2 made with the same seed.
        super().__init__(config)
        self.h = nn.ModuleList(
            GPT2NaturalAttentionBlock(config, layer_idx=layer, causal=config.is_causal)
            for layer in range(config.n_layer)
        )

    def _init_weights(self, module: nn.Module) -> None:
        """GPT-2's own, except for the linear layers, which are those of the blocks: they keep PyTorch's."""
        if not isinstance(module, nn.Linear):
            super()._init_weights(module)  # type: ignore[no-untyped-call]


class PublishedLMHeadModel(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """The published model with GPT-2's tied head."""

    config_class = PublishedConfig
    _no_split_modules = ["GPT2NaturalAttentionBlock"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: PublishedConfig) -> None:
        GPT2PreTrainedModel.__init__(self, config)
        self.transformer = PublishedModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]


def register() -> None:
    """Let transformers' Auto classes load saved published models; harmless when repeated."""
    AutoConfig.register(PublishedConfig.model_type, PublishedConfig, exist_ok=True)
    AutoModelForCausalLM.register(PublishedConfig, PublishedLMHeadModel, exist_ok=True)


def build_published(
    *,
    n_layer: int,
    n_embd: int,
    n_head: int,
    context: int,
    initializer_range: float,
    vocab_size: int,
    end_token_id: int,
    causal: bool,
    seed: int,
    n_inner: int | None = None,
    embedding_dropout: float = 0.0,
) -> PublishedLMHeadModel:
    """Build a published model in float32 on the CPU.

    Embeddings, final norm and tied head are those of a GPT-2 of the same sizes and seed; the blocks have PyTorch's own
    initialisation. The same arguments give the same weights, causal or not.

    Args:
        context: longest sequence, tokens.
        initializer_range: standard deviation of the embeddings.
        n_inner: hidden units of the MLP; None for four times the width.
        causal: False is as published: LEAKY, it sees the tokens it is asked to predict, and generates without a cache.
        embedding_dropout: on the sum of the embeddings, the only dropout there is.

    Raises: ValueError when ``n_head`` does not divide ``n_embd``.
    """
    register()
    if n_head < 1 or n_embd % n_head:
        raise ValueError(f"n_head={n_head}: does not divide n_embd={n_embd}")
    config = PublishedConfig(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        n_inner=n_inner,
        initializer_range=initializer_range,
        activation_function="gelu_pytorch_tanh",
        embd_pdrop=embedding_dropout,
        bos_token_id=end_token_id,
        eos_token_id=end_token_id,
        use_cache=causal,
        is_causal=causal,
    )
    config._attn_implementation = NATURAL
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PublishedLMHeadModel(config)
    model.generation_config.use_cache = causal
    return model
