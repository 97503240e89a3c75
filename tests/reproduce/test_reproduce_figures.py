import io
import math

import numpy as np
import pytest
from matplotlib import image
from matplotlib.figure import Figure

from natattn.report.table import Estimate, Finding
from natattn.reproduce import figures
from natattn.reproduce.claims import CLAIMS
from natattn.reproduce.figures import FARTHEST, ledger_figure, profile_figure
from natattn.reproduce.results import StudyResult
from natattn.statistics.paired import Verdict

TIMES = {"muon": [100.0, 120.0, math.inf], "adamw": [300.0, math.inf, math.inf], "ours": [90.0, 130.0, 80.0]}


def result(*findings: Finding) -> StudyResult:
    return StudyResult("claims", "smoke", "a study", {}, findings)


def finding(claim: str, verdict: Verdict, *numbers: float, against: float = 0.0) -> Finding:
    what, effect = f"what of {claim}", Estimate(*numbers)
    return Finding(claim, "claims", what, "text", effect, "nats/token", 5, verdict, against=against)


FINDINGS = (
    finding("R1", "inconclusive", 0.0, -1.0, 1.0),
    finding("R3", "supported", -0.066, -0.072, -0.060),
    finding("R3", "refuted", 0.4, 0.3, 0.5),
    finding("K2", "refuted", 2.5, 2.0, 3.0, against=1.5),
    finding("A1", "inconclusive", 0.4, math.nan, 0.6),
    finding("F3", "inconclusive", 0.4, 0.2, math.nan),
    finding("P2", "refuted", 0.5),
    finding("A2", "inconclusive", math.nan),
    finding("F1", "no effect", 0.001, -0.004, 0.006),
)


@pytest.fixture
def drawn_figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures behind the pictures that a test makes."""
    kept: list[Figure] = []

    def draw_and_keep(draw, size) -> bytes:
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        kept.append(figure)
        return b""

    monkeypatch.setattr(figures, "drawn", draw_and_keep)
    return kept


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_the_picture_of_the_ledger_is_a_png_with_its_numbers() -> None:
    picture = ledger_figure([result(*FINDINGS)], CLAIMS)
    pixels = image.imread(io.BytesIO(picture.png), format="png")
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05
    columns = dict(zip(picture.data.headings, zip(*picture.data.rows, strict=True), strict=True))
    assert set(columns["claim"]) == set(CLAIMS)
    assert len(picture.data.rows) == len(CLAIMS) + 1  # R3 has two
    place = columns["what"].index("what of K2")
    assert columns["half-widths"][place] == pytest.approx(2.0)  # from 3/2
    assert columns["verdict"].count("not measured") == len(CLAIMS) - 8
    assert "(K2: 1.5)" in picture.caption


def test_every_claim_has_a_row_with_its_verdict_as_text(drawn_figures: list[Figure]) -> None:
    ledger_figure([result(*FINDINGS)], CLAIMS)
    written = texts(drawn_figures[0])
    assert [text for text in written if text in CLAIMS] == list(CLAIMS)
    counts = {word: written.count(word) for word in ("supported", "refuted", "no effect", "inconclusive")}
    assert counts == {"supported": 0, "refuted": 2, "no effect": 1, "inconclusive": 5}
    assert written.count("not measured") == len(CLAIMS) - 8
    assert "1 supported, 1 refuted" in written
    assert "no value" in written


def test_marks_stand_in_half_widths_and_are_cut_at_the_edge(drawn_figures: list[Figure]) -> None:
    ledger_figure([result(*FINDINGS)], CLAIMS)
    panel = drawn_figures[0].axes[0]
    in_data = [line for line in panel.lines if line.get_transform() == panel.transData]
    marks = [float(line.get_xdata()[0]) for line in in_data if line.get_marker() not in ("None", None)]
    assert sorted(marks) == pytest.approx([-FARTHEST, 0.0, 0.2, 2.0, 2.0, 2.0, 4.0])
    bars = [tuple(line.get_xdata()) for line in in_data if line.get_linestyle() == "-"]
    assert sorted(map(tuple, np.round(bars, 6))) == sorted(
        [(-1, 1), (3, 5), (1, 3), (-FARTHEST, 3), (1, FARTHEST), (-0.8, 1.2)]
    )


def test_verdicts_differ_in_more_than_colour(drawn_figures: list[Figure]) -> None:
    verdicts: list[Verdict] = ["supported", "refuted", "no effect", "inconclusive"]
    claims = dict(list(CLAIMS.items())[:4])
    ledger_figure([result(*(finding(n, v, 0.1, 0.0, 0.2) for n, v in zip(claims, verdicts, strict=True)))], claims)
    (legend,) = drawn_figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == verdicts
    assert len({handle.get_marker() for handle in legend.legend_handles}) == 4


def test_a_claim_with_many_findings_gets_more_room(drawn_figures: list[Figure]) -> None:
    few = [finding("K1", "refuted", -0.3, -0.4, -0.2)]
    ledger_figure([result(*few)], CLAIMS)
    ledger_figure([result(*few * 10)], CLAIMS)
    assert drawn_figures[1].get_figheight() > drawn_figures[0].get_figheight()


def test_a_ledger_of_nothing_is_drawn() -> None:
    assert ledger_figure([], CLAIMS).png.startswith(b"\x89PNG")


def test_findings_of_no_claim_are_refused() -> None:
    with pytest.raises(ValueError, match="Z9"):
        ledger_figure([result(finding("Z9", "refuted", 1.0))], CLAIMS)


def test_profiles_are_drawn_in_the_order_of_their_scores(drawn_figures: list[Figure]) -> None:
    picture = profile_figure(TIMES, largest=4.0)
    assert picture.data.headings == ("r", "ours", "muon", "adamw")
    first, last = picture.data.rows[0], picture.data.rows[-1]
    assert first == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0))
    assert last == pytest.approx((4.0, 1.0, 2 / 3, 1 / 3))
    labels = [line.get_label() for line in drawn_figures[0].axes[0].lines]
    assert [label.split()[0] for label in labels] == ["ours", "muon", "adamw"]
    assert "(0.99 [" in labels[0]


def test_a_profile_is_a_png() -> None:
    assert profile_figure(TIMES).png.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no workloads"):
        profile_figure({})
