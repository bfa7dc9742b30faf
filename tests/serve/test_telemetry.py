"""A span for each request, as a collector would get it, and none of what was said in it."""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from puna.serve.telemetry import Tracer

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk: pip install 'puna[telemetry]'")


@pytest.fixture
def served(chat_model: Path, running: Callable) -> Iterator[tuple[Any, Callable[[], list[Any]]]]:
    """A server, and a function that ends its tracing and gives the spans."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    with running(chat_model) as live:
        live.server.tracer = Tracer(exporter)

        def spans() -> list[Any]:
            live.server.tracer.close()
            return list(exporter.get_finished_spans())

        yield live, spans


def test_each_request_is_a_span(served: tuple[Any, Callable[[], list[Any]]]) -> None:
    live, spans = served
    one = live.complete(prompt="The harbour", max_tokens=5)
    with live.api.stream(
        "POST", "/v1/completions", json={"prompt": "Ships", "max_tokens": 3, "n": 2, "stream": True}
    ) as s:
        s.read()
    assert live.settled()
    whole, streamed = spans()
    assert whole.name == streamed.name == "generate tiny"
    assert whole.resource.attributes["service.name"] == "puna"
    assert dict(whole.attributes) == {
        "gen_ai.system": "puna",
        "gen_ai.request.model": "tiny",
        "gen_ai.request.choice.count": 1,
        "gen_ai.usage.input_tokens": one["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": one["usage"]["completion_tokens"],
    }
    assert streamed.attributes["gen_ai.request.choice.count"] == 2
    assert streamed.attributes["gen_ai.usage.output_tokens"] == 6
    assert whole.start_time < whole.end_time


def test_a_request_that_fails_says_why_in_its_span(served: tuple[Any, Callable[[], list[Any]]]) -> None:
    live, spans = served

    def broken(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    live.engine._core.runner.forward = broken
    answer = live.post("/v1/completions", {"prompt": "a secret", "max_tokens": 5})
    assert answer.status_code == 500
    [span] = spans()
    assert span.attributes["error.type"]
    assert "secret" not in span.to_json()


def test_nothing_is_traced_unless_somebody_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert Tracer()._provider is None


def test_tracing_that_is_wanted_and_cannot_be_had_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        Tracer().close()
    assert "pip install 'puna[telemetry]'" in caplog.text
