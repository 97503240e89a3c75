"""Captioned pictures of `datasets`: any set of the hub with images and texts, or a folder that it can load."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from natattn.data.images.captioned import Captioned, captions_of, store_captioned
from natattn.data.images.hub_tables import TableSettings, check_column, open_tables, place_of, table_pictures
from natattn.data.text.splits import SplitName


class CaptionHubSettings(TableSettings):
    """Pictures of a table.

    `caption_column`: a column of texts or of lists of texts, or several columns, each with a caption of the image.
    """

    kind: Literal["caption_hub"]
    caption_column: str | tuple[str, ...] = Field(min_length=1)


def read_caption_hub(settings: CaptionHubSettings, *, root: Path, progress: bool) -> Captioned:
    """The pictures and captions in their splits.

    Raises UserError for a set, split or column that is not there, a row without a caption and a picture that cannot be
    decoded.
    """
    tables = open_tables(settings, otherwise="data=digit_scenes or data=captions data.train=FILE")
    columns = (settings.caption_column,) if isinstance(settings.caption_column, str) else settings.caption_column
    given: dict[SplitName, Any] = {
        split: (table_pictures(table, settings.image_column), _captions(table, columns))
        for split, table in tables.items()
    }
    return store_captioned(
        Path(settings.dataset).name,
        given,
        settings,
        source=f"data.dataset={settings.dataset}",
        root=root,
        progress=progress,
    )


def _captions(table: Any, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The captions of each row, those of all columns together."""
    for column in columns:
        check_column(table, "data.caption_column", column)
    rows: list[tuple[str, ...]] = []
    for row, values in enumerate(zip(*(list(table[column]) for column in columns), strict=True)):
        rows.append(
            tuple(
                caption
                for column, value in zip(columns, values, strict=True)
                for caption in captions_of(value, f"{place_of(table, row)}[{column!r}]")
            )
        )
    return rows
