"""Signals while a run trains: remembered, and where work can be thrown away, obeyed at once."""

import os
import signal

import pytest

from natattn.cli.exit_codes import run_guarded
from natattn.training.interruption import BrokenOffError, Interruption


def receive(number: int) -> None:
    os.kill(os.getpid(), number)
    raise AssertionError("it went on")


def test_a_signal_is_remembered_and_ends_what_can_be_broken_off():
    with Interruption() as interruption:
        with pytest.raises(BrokenOffError), interruption.breakable():
            receive(signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
        with pytest.raises(BrokenOffError), interruption.breakable():
            raise AssertionError("it began")
        with pytest.raises(KeyboardInterrupt):
            receive(signal.SIGINT)


def test_nothing_is_broken_off_outside_or_where_others_have_to_agree():
    with Interruption() as interruption:
        with interruption.breakable():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal == signal.SIGTERM
    with Interruption() as interruption:
        interruption.hold()
        with interruption.breakable():
            os.kill(os.getpid(), signal.SIGTERM)
        assert (interruption.signal, interruption.received) == (None, signal.SIGTERM)


def test_sigterm_ends_a_command_in_a_line(capsys):
    before = signal.getsignal(signal.SIGTERM)

    assert run_guarded(lambda: receive(signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "natattn: stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before
