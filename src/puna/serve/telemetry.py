"""A span for each request, for who runs an OpenTelemetry collector.

Nothing is sent unless opentelemetry is installed (`pip install puna[telemetry]`) and OTEL_EXPORTER_OTLP_ENDPOINT says
where to. Attribute names follow OpenTelemetry's conventions for generative AI; texts are never part of a span.
"""

import logging
import os
from typing import TYPE_CHECKING, Any

from puna.serve.openai.protocol import GenerationRequest
from puna.web.errors import ApiError

if TYPE_CHECKING:
    from puna.serve.metrics import RequestMetrics

log = logging.getLogger("puna.serve")


class Span:
    """One request's span, or nothing at all."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def failed(self, error: ApiError) -> None:
        """Say what went wrong."""
        if self._span is not None:
            self._span.set_attribute("error.type", error.code or error.type)

    def end(self, watch: "RequestMetrics") -> None:
        """Add what was counted and send it."""
        if self._span is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", watch.prompt_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", watch.completion_tokens)
            self._span.end()


class Tracer:
    """Starts spans where somebody wants them."""

    def __init__(self, exporter: Any = None) -> None:
        """exporter: an OpenTelemetry SpanExporter; by default the one that the environment asks for, if it does."""
        self._tracer: Any = None
        self._provider: Any = None
        wanted = exporter is not None or bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
        if not wanted:
            return
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            if exporter is None:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

                exporter = OTLPSpanExporter()
        except ImportError:
            log.warning(
                "OTEL_EXPORTER_OTLP_ENDPOINT is set, but opentelemetry is not installed, so nothing is sent. "
                "pip install 'puna[telemetry]'"
            )
            return
        self._provider = TracerProvider(resource=Resource.create({"service.name": "puna"}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("puna.serve")

    def close(self) -> None:
        """Send what has not been sent. Waits for the collector, for as long as OpenTelemetry lets it."""
        if self._provider is not None:
            self._provider.shutdown()

    def start(self, model: str, request: GenerationRequest) -> Span:
        """Begin the span of a request."""
        if self._tracer is None:
            return Span()
        attributes = {
            "gen_ai.system": "puna",
            "gen_ai.request.model": model,
            "gen_ai.request.choice.count": request.texts,
        }
        return Span(self._tracer.start_span(f"generate {model}", attributes=attributes))
