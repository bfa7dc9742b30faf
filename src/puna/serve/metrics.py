"""Prometheus metrics: counted by requests, and read from the engines on scrape."""

from collections.abc import Iterable
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from puna.serve.backends.base import Models
from puna.serve.openai.protocol import ChatChunk, CompletionChunk

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one server."""

    def __init__(self, models: Models) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.http = Counter("puna_http_requests", "HTTP responses.", ["route", "method", "status"], registry=r)
        self.first_token = Histogram(
            "puna_time_to_first_token_seconds",
            "From the request to the first token.",
            ["model"],
            buckets=_SECONDS,
            registry=r,
        )
        self.between = Histogram(
            "puna_inter_token_seconds",
            "Mean time between two tokens of a sequence.",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=r,
        )
        self.whole = Histogram(
            "puna_request_seconds",
            "From the request to the last token.",
            ["model", "outcome"],
            buckets=_SECONDS,
            registry=r,
        )
        self.prompt = Counter("puna_prompt_tokens", "Prompt tokens.", ["model"], registry=r)
        self.cached = Counter("puna_cached_tokens", "Prompt tokens found in the prefix cache.", ["model"], registry=r)
        self.generated = Counter("puna_generated_tokens", "Generated tokens.", ["model"], registry=r)
        self.rejected = Counter(
            "puna_refused_requests", "Requests rejected because the queue was full.", ["model"], registry=r
        )
        self.in_flight = Gauge("puna_texts_in_flight", "Sequences running or waiting.", ["model"], registry=r)
        self._seconds: dict[str, float] = {}  # running mean of request times, by model
        r.register(_Engines(models))

    def watch(self, model: str, texts: int) -> "RequestMetrics":
        """Start counting a request."""
        return RequestMetrics(self, model, texts)

    def count(self, route: str, method: str, status: str) -> None:
        """Count one HTTP response."""
        self.http.labels(route, method, status).inc()

    def refused(self, model: str) -> None:
        """Count a request that found no room."""
        self.rejected.labels(model).inc()

    def retry_after(self, model: str) -> int:
        """Seconds after which to retry: about the time of one request."""
        return max(1, min(60, round(self._seconds.get(model, 1.0))))

    def ended(self, model: str, seconds: float) -> None:
        """Record the time of a request."""
        self._seconds[model] = 0.8 * self._seconds.get(model, seconds) + 0.2 * seconds

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self.registry)


class RequestMetrics:
    """Counts one request from its chunks."""

    def __init__(self, metrics: Metrics, model: str, texts: int) -> None:
        self._metrics, self._model, self._texts = metrics, model, texts
        self._start = monotonic()
        self._first: float | None = None
        self.outcome = "cancelled"
        self.prompt_tokens = self.completion_tokens = 0
        metrics.in_flight.labels(model).inc(texts)

    def chunk(self, chunk: ChatChunk | CompletionChunk) -> None:
        """Count a chunk."""
        if self._first is None and chunk.choices:
            self._first = monotonic()
            self._metrics.first_token.labels(self._model).observe(self._first - self._start)
        if chunk.usage is not None:
            self.outcome = "done"
            self.prompt_tokens, self.completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
            self._metrics.prompt.labels(self._model).inc(self.prompt_tokens)
            self._metrics.generated.labels(self._model).inc(self.completion_tokens)
            details = chunk.usage.prompt_tokens_details
            self._metrics.cached.labels(self._model).inc(details.cached_tokens if details else 0)

    def end(self) -> None:
        """Count the end of the request, however it ended."""
        now = monotonic()
        metrics, model = self._metrics, self._model
        metrics.in_flight.labels(model).dec(self._texts)
        metrics.whole.labels(model, self.outcome).observe(now - self._start)
        steps = self.completion_tokens / self._texts - 1
        if self.outcome == "done":
            metrics.ended(model, now - self._start)
            if self._first is not None and steps > 0:
                metrics.between.labels(model).observe((now - self._first) / steps)


class _Engines(Collector):
    """The engines' own statistics, collected on scrape."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("puna_running_texts", "Sequences running in the engine.", labels=["model"])
        waiting = GaugeMetricFamily("puna_waiting_requests", "Requests waiting for the engine.", labels=["model"])
        pages = GaugeMetricFamily("puna_pages", "Blocks of the KV cache.", labels=["model", "state"])
        version = GaugeMetricFamily(
            "puna_weight_version", "Version of the weights: how often they were updated.", labels=["model"]
        )
        age = GaugeMetricFamily("puna_progress_age_seconds", "Seconds since the last step ended.", labels=["model"])
        preempted = CounterMetricFamily("puna_preemptions", "Sequences that were preempted.", labels=["model"])
        steps = CounterMetricFamily("puna_steps", "Engine steps.", labels=["model"])
        for backend in self._models:
            name, numbers = [backend.card.id], backend.stats()
            for family, key in (
                (running, "running"),
                (waiting, "waiting"),
                (version, "weight_version"),
                (age, "progress_age"),
                (preempted, "preemptions"),
                (steps, "steps"),
            ):
                if key in numbers:
                    family.add_metric(name, numbers[key])
            for state, count in numbers.get("blocks", {}).items():
                pages.add_metric([*name, state], count)
        return [running, waiting, pages, version, age, preempted, steps]
