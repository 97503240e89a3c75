"""Text → tokens (memory-mapped, cached by content) → batches that are addressed by (seed, step)."""

from natattn.data.text.blocks import Batches, TokenSplit, evaluation_batches
from natattn.data.text.corpora import DataSettings
from natattn.data.text.entropy import bigram_entropy, held_out_bigram_entropy, unigram_entropy
from natattn.data.text.packing import PackingSettings, pack
from natattn.data.text.tokenized import TokenizedCorpus, prepare
from natattn.data.text.tokenizers import Tokenizer, TokenizerSettings

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
