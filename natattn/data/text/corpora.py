"""The kinds of corpora."""

from typing import Annotated

from pydantic import Field

from natattn.data.text.grammar import GrammarCorpus, GrammarSettings
from natattn.data.text.splits import Corpus
from natattn.data.text.stdlib import StdlibCorpus, StdlibSettings
from natattn.data.text.text import TextCorpus, TextSettings
from natattn.data.text.wikitext import WikitextCorpus, WikitextSettings

DataSettings = Annotated[
    StdlibSettings | WikitextSettings | TextSettings | GrammarSettings,
    Field(discriminator="kind"),
]


def open_corpus(settings: DataSettings) -> Corpus:
    """Open the corpus of the settings. Raises: UserError if its text cannot be found."""
    match settings:
        case StdlibSettings():
            return StdlibCorpus(settings)
        case WikitextSettings():
            return WikitextCorpus(settings)
        case TextSettings():
            return TextCorpus(settings)
        case GrammarSettings():
            return GrammarCorpus(settings)
