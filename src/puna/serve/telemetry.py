"""OpenTelemetry: one span a request.

Nothing is sent unless opentelemetry is installed (`pip install puna[telemetry]`) and OTEL_EXPORTER_OTLP_ENDPOINT is
set. Attribute names follow OpenTelemetry's conventions for generative AI; spans never contain text.
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
    """The span of one request; does nothing without a tracer."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def failed(self, error: ApiError) -> None:
        """Record an error."""
        if self._span is not None:
            self._span.set_attribute("error.type", error.code or error.type)

    def end(self, watch: "RequestMetrics") -> None:
        """Add token counts and end the span."""
        if self._span is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", watch.prompt_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", watch.completion_tokens)
            self._span.end()


class Tracer:
    """Starts spans, if tracing is configured."""

    def __init__(self, exporter: Any = None) -> None:
        """exporter: an OpenTelemetry SpanExporter; by default the environment's, if any."""
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
        """Send the remaining spans, waiting for the collector as long as OpenTelemetry allows."""
        if self._provider is not None:
            self._provider.shutdown()

    def start(self, model: str, request: GenerationRequest) -> Span:
        """Start the span of a request."""
        if self._tracer is None:
            return Span()
        attributes = {
            "gen_ai.system": "puna",
            "gen_ai.request.model": model,
            "gen_ai.request.choice.count": request.texts,
        }
        return Span(self._tracer.start_span(f"generate {model}", attributes=attributes))
