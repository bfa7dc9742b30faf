"""Polls an upstream's health once a second, so that a health check never waits for it."""

import ssl
import threading
from typing import Any

import httpx

SECONDS = {"vllm": 1.0, "llama.cpp": 1.0, "openai": 5.0}
"""Between two polls. A public API has no cheap health route, so it is polled less often."""
ANSWER_SECONDS = 1.0
_SLOW_SECONDS = 10.0  # for the list of models of a distant server


class Probe:
    """Polls until closed. models: its list from /v1/models."""

    def __init__(self, kind: str, url: str, headers: dict[str, str], tls: ssl.SSLContext) -> None:
        self.models: list[dict[str, Any]] = []
        self._kind, self._url = kind, url
        self._trouble = ""
        self._stop = threading.Event()
        timeout = _SLOW_SECONDS if kind == "openai" else ANSWER_SECONDS
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout, verify=tls, trust_env=False)
        self._ask()
        threading.Thread(target=self._run, name="puna-upstream-probe", daemon=True).start()

    def trouble(self) -> str:
        """What is wrong, as a sentence; empty when nothing is."""
        return self._trouble

    def failed(self, how: str) -> None:
        """Record a failure that a request has found."""
        self._trouble = self._sentence(how)

    def close(self) -> None:
        """Stop polling."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(SECONDS[self._kind]):
            self._ask()
        self._client.close()

    def _ask(self) -> None:
        """Check the health, and get the list of models unless it is known."""
        try:
            if self._kind == "openai" or not self.models:
                listed = self._client.get("/v1/models")
                if listed.status_code == 200:
                    self.models = [model for model in listed.json()["data"] if isinstance(model, dict)]
                answer = listed
            if self._kind != "openai":
                answer = self._client.get("/health")
            # A server that hides its list of models may still answer requests.
            bad = answer.status_code >= 500 or (self._kind != "openai" and answer.status_code != 200)
            self._trouble = self._sentence(f"says {answer.status_code}") if bad else ""
        except httpx.TimeoutException:
            self._trouble = self._sentence("does not answer")
        except httpx.HTTPError:
            self._trouble = self._sentence("cannot be reached")
        except (ValueError, KeyError, TypeError):
            self._trouble = self._sentence("did not answer with its list of models")

    def _sentence(self, how: str) -> str:
        return f"The upstream server ({self._kind}) {how}."
