"""The scripts that make tables of single-arm runs and keep what is needed of them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from natattn.optim.settings import read_settings

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_screening(make_run):
    """Writes runs of one arm with an optimizer's settings; the loss is lower by `advantage`."""

    def make(name: str, *, seed: int, advantage: float, rate: float = 0.01, text: str = "valid.txt", **changed) -> Path:
        optim = read_settings(name).model_dump(mode="json") | {"learning_rates": {"hidden": rate}} | changed
        config = {"seed": seed, "optim": optim, "data": {"train": text}}
        folder = f"{name}_{len(changed)}_{rate}_{seed}"
        run = make_run(
            folder, arms=("natural",), seed=seed, advantage=advantage, config=config, config_hash=f"{folder:x<16}"
        )
        (run / "environment.json").write_text("{}")
        return run

    return make


def run_script(name: str, monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    code = script(name).main()
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows(table: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def test_tuning_names_the_best_rate_and_whether_it_is_at_the_edge(make_screening, tmp_path, monkeypatch, capsys):
    for rate, advantage in {0.004: 0.1, 0.01: 0.3, 0.025: 0.2}.items():
        make_screening("muon", seed=0, advantage=advantage, rate=rate)
        make_screening("natural_muon", seed=0, advantage=rate, rate=rate)
    make_screening("muon", seed=1, advantage=2.0)  # another seed's runs are passed over
    code, out, _ = run_script("screening_table", monkeypatch, capsys, tmp_path)
    assert code == 0
    found = rows(out)
    assert list(found) == ["muon", "natural_muon"]
    assert found["muon"][0] == "0.01"
    assert found["natural_muon"][0] == "0.025 (edge)"
    assert float(found["muon"][2]) - float(found["muon"][3]) == pytest.approx(0.2, abs=0.0011)


def test_comparison_is_paired_by_seed(make_screening, tmp_path, monkeypatch, capsys):
    for seed in (1, 2, 3):
        make_screening("muon", seed=seed, advantage=0.1)
        make_screening("natural_muon", seed=seed, advantage=0.2 + 0.01 * seed)
        make_screening("natural_muon", seed=seed, advantage=0.05, placebo="shuffled")
    arguments = (tmp_path, "--seeds", "1,2,3", "--against", "muon", "--seconds")
    code, out, _ = run_script("screening_table", monkeypatch, capsys, *arguments)
    assert code == 0
    found = rows(out)
    assert list(found) == ["natural_muon", "muon", "natural_muon placebo=shuffled"]
    # Differences −0.11, −0.12, −0.13: standard deviation 0.01, t quantile 4.3027 at two degrees of freedom.
    assert found["natural_muon"][3] == "-0.1200 [-0.1448, -0.0952]"
    assert found["muon"][3:6] == ["", "1.00", "1.00"]
    assert float(found["natural_muon"][4]) < 1
    assert found["natural_muon placebo=shuffled"][4:6] == ["never", "never"]


def test_runs_that_do_not_compare_are_refused_in_one_line(make_screening, tmp_path, monkeypatch, capsys):
    make_screening("muon", seed=0, advantage=0.1)
    for arguments, said in {
        ("--seeds", "5"): "are none",
        ("--against", "soap"): "--against soap: no such runs; there are muon",
    }.items():
        code, out, error = run_script("screening_table", monkeypatch, capsys, tmp_path, *arguments)
        assert (code, out) == (2, "")
        assert said in error
        assert error.count("\n") == 1
