"""Text → tokens (memory-mapped, cached by content) → batches that are addressed by (seed, step)."""

from natattn.data.blocks import Batches, TokenSplit, evaluation_batches
from natattn.data.corpora import DataSettings
from natattn.data.entropy import bigram_entropy, held_out_bigram_entropy, unigram_entropy
from natattn.data.packing import PackingSettings, pack
from natattn.data.tokenized import TokenizedCorpus, prepare
from natattn.data.tokenizers import Tokenizer, TokenizerSettings

__all__ = [
    "Batches",
    "DataSettings",
    "PackingSettings",
    "TokenSplit",
    "TokenizedCorpus",
    "Tokenizer",
    "TokenizerSettings",
    "bigram_entropy",
    "evaluation_batches",
    "held_out_bigram_entropy",
    "pack",
    "prepare",
    "unigram_entropy",
]
