"""Server settings; every resource is limited by default."""

from dataclasses import dataclass

from puna.web.settings import WebSettings


@dataclass(frozen=True, kw_only=True)
class Settings(WebSettings):
    """Limits of the model server, in addition to those of the HTTP layer. Times are in seconds."""

    max_queue: int = 64
    """Sequences that may wait for a place, a request with n counting as n; more get 429."""
    request_seconds: float = 600.0
    """Time limit for a request; then 504, or an error event within a stream."""
    prepare_seconds: float = 30.0
    """Time limit for rendering, tokenising and compiling a grammar; then 504."""
    stream_buffer: int = 4096
    """Tokens that may wait for a slow reader; then its stream ends."""
    drain_seconds: float = 30.0
    """After SIGTERM, requests in progress have this long to finish."""
    stuck_seconds: float = 1.5
    """/health/progress fails when the engine is busy and has finished no step for this long."""
    max_stored_responses: int = 1000
    """Responses of /v1/responses kept for previous_response_id; the oldest are dropped first."""
