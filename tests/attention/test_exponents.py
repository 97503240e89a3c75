"""α_k from the file that `natattn analyze runs=…` writes."""

import json

import pytest

from natattn.cli.main import main
from natattn.training.run_folder import read_config

FITS = [
    ("frozen", "heat_capacity", "all heads", 0.9),
    ("frozen", "heat_capacity", "rank 1", -0.5),
    ("frozen", "heat_capacity", "rank 0", 0.25),
    ("frozen", "susceptibility", "rank 0", 7.0),
    ("propagated", "heat_capacity", "rank 0", 8.0),
]


def write(folder, fits):
    path = folder / "analysis.json"
    exponents = [dict(zip(("kind", "of", "where", "alpha"), fit, strict=True)) for fit in fits]
    path.write_text(json.dumps({"results": {"widths": {"exponents": exponents}}}))
    return path


def test_a_run_takes_them_and_records_the_numbers(tiny, tmp_path):
    path, run = write(tmp_path, FITS), tmp_path / "run"
    arguments = [f"model.attention.temperature.exponents={path}", "model=tempered_critical", "optim=critical"]
    arguments += [f"optim.directions.query.head_exponents={path}", "reference=none", f"hydra.run.dir={run}"]
    assert main(["train", *tiny, *arguments]) == 0
    config = read_config(run)
    assert config["model"]["attention"]["temperature"]["exponents"] == [0.25, -0.5]
    assert config["optim"]["directions"]["query"]["head_exponents"] == [0.25, -0.5]


@pytest.mark.parametrize(
    ("fits", "said"),
    [
        (None, "No such file"),
        (FITS[:1], "no exponents by rank"),
        ([("frozen", "heat_capacity", "rank one", 1.0)], "no analysis of several"),
    ],
)
def test_what_is_no_such_file_is_one_line(fits, said, tiny, tmp_path, capsys):
    path = tmp_path / "analysis.json"
    if fits is not None:
        write(tmp_path, fits)
    arguments = ["model=tempered_critical", f"model.attention.temperature.exponents={path}"]
    assert main(["train", *tiny, *arguments, f"hydra.run.dir={tmp_path}/run"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "exponents" in error
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()
