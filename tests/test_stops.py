"""Signals that a library swallows, or that come when a run is at its end, still end what would come after it."""

import contextlib
import os
import signal

import pytest

from natattn.cli.main import main
from natattn.training import train as training
from natattn.training.signals import requested

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def finished(folder):
    return len(list(folder.glob("outputs/*_sweep/*/run.json")))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_run_is_saved_ends_the_sweep_after_it(number, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export = training._export

    def signalled(run, arm):
        if arm is run.arms[-1]:  # a second signal would end the run at once
            os.kill(os.getpid(), number)
        export(run, arm)

    monkeypatch.setattr(training, "_export", signalled)
    assert main(["train", "-m", *tiny, "train.steps=2", "seed=0,1,2"]) == 128 + number
    assert finished(tmp_path) == 1
    assert "interrupted; the sweep ends here" in capsys.readouterr().err
    assert requested() is None
    assert main(["train", *tiny, "train.steps=2"]) == 128 + number  # nor does what follows it in a script begin
    assert "after the command had finished" in capsys.readouterr().err


def test_an_interruption_that_is_swallowed_between_jobs_ends_the_sweep(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def swallows(*_, **__):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("natattn.cli.run.plot_curves", swallows)  # the last step of a job
    assert main(["train", "-m", *tiny, "train.steps=2", "seed=0,1,2"]) == 130
    assert finished(tmp_path) == 1
    assert len(list(tmp_path.glob("outputs/*_sweep/*_seed*"))) == 1
    assert "interrupted" in capsys.readouterr().err


def test_an_interruption_is_no_mistake_of_the_user(monkeypatch, capsys):
    def composes(*_):
        from natattn.errors import UserError

        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise UserError("ConfigCompositionException")

    monkeypatch.setattr("natattn.cli.analyze.compose", composes)
    assert main(["analyze", "init=pretrained"]) == 130
    assert capsys.readouterr().err == "natattn: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_study_ends_after_the_run_in_which_it_was_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    export, exported = training._export, []

    def signalled(*arguments):
        exported.append(arguments)
        os.kill(os.getpid(), signal.SIGINT)
        export(*arguments)

    monkeypatch.setattr(training, "_export", signalled)
    assert main(["reproduce", "study=optimizers", "budget=smoke"]) == 130
    assert len(exported) == 1
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "many"])
def test_a_world_size_of_something_else_is_no_torchrun(value, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    assert main(["report", "--help"]) == 0
