"""A span for each request, for who runs an OpenTelemetry collector.

Nothing is sent unless opentelemetry is installed (`pip install puna[telemetry]`) and OTEL_EXPORTER_OTLP_ENDPOINT says
where to. Attribute names follow OpenTelemetry's conventions for generative AI; texts are never part of a span.
"""

import os
from typing import TYPE_CHECKING, Any

from puna.serve.errors import ApiError
from puna.serve.protocol import GenerationRequest

if TYPE_CHECKING:
    from puna.serve.metrics import Watch


class Span:
    """One request's span, or nothing at all."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def failed(self, error: ApiError) -> None:
        """Say what went wrong."""
        if self._span is not None:
            self._span.set_attribute("error.type", error.code or error.type)

    def end(self, watch: "Watch") -> None:
        """Add what was counted and send it."""
        if self._span is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", watch.prompt_tokens)
            self._span.set_attribute("gen_ai.usage.output_tokens", watch.completion_tokens)
            self._span.end()


class Tracer:
    """Starts spans where somebody wants them."""

    def __init__(self) -> None:
        self._tracer: Any = None
        if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            return
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            return
        provider = TracerProvider(resource=Resource.create({"service.name": "puna"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = provider.get_tracer("puna.serve")

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
