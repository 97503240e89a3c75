import http.server
import threading
from collections.abc import Iterator

import pytest

from natattn.data import hub


@pytest.fixture(autouse=True)
def _ask_anew() -> Iterator[None]:
    hub.hub_reachable.cache_clear()
    yield
    hub.hub_reachable.cache_clear()


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers, be it with an error, once it may."""

    may_answer: threading.Event

    def do_HEAD(self) -> None:
        self.may_answer.wait(60)
        self.send_error(403)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    handler = type("Handler", (Hub,), {"may_answer": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield handler
        handler.may_answer.set()
        running.shutdown()


def test_any_answer_is_a_hub(server: type[Hub]) -> None:
    server.may_answer.set()
    assert hub.hub_reachable()


def test_a_slow_answer_is_none_and_not_waited_for(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS", 0.1)
    assert not hub.hub_reachable()
    assert not server.may_answer.is_set()  # it had not been given


def test_offline_mode_is_respected(server: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    server.may_answer.set()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not hub.hub_reachable()
