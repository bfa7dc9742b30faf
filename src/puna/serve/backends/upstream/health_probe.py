"""How another server is, asked once a second, so that who asks us never waits for it.

A thread of its own asks: the answer is there before the question, also while the event loop has nothing to do.
"""

import ssl
import threading
from typing import Any

import httpx

SECONDS = {"vllm": 1.0, "llama.cpp": 1.0, "openai": 5.0}
"""Between two questions. Servers of the world's own have no cheap question, so they are asked less often."""
ANSWER_SECONDS = 1.0
_SLOW_SECONDS = 10.0  # what a server far away may take for its list of models


class Probe:
    """Asks until closed. models: what its /v1/models last said."""

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
        """A sentence about what is wrong; empty when nothing is."""
        return self._trouble

    def failed(self, how: str) -> None:
        """A request has found out first."""
        self._trouble = self._sentence(how)

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(SECONDS[self._kind]):
            self._ask()
        self._client.close()

    def _ask(self) -> None:
        """What is wrong with it now, and which models it has as long as that is not known."""
        try:
            if self._kind == "openai" or not self.models:
                listed = self._client.get("/v1/models")
                if listed.status_code == 200:
                    self.models = [model for model in listed.json()["data"] if isinstance(model, dict)]
                answer = listed
            if self._kind != "openai":
                answer = self._client.get("/health")
            # A server without a list of models, or with one for others only, may well answer.
            bad = answer.status_code >= 500 or (self._kind != "openai" and answer.status_code != 200)
            self._trouble = self._sentence(f"says {answer.status_code}") if bad else ""
        except httpx.TimeoutException:
            self._trouble = self._sentence("does not answer")
        except httpx.HTTPError:
            self._trouble = self._sentence("cannot be reached")
        except (ValueError, KeyError, TypeError):
            self._trouble = self._sentence("answers with something else than its models")

    def _sentence(self, how: str) -> str:
        return f"The upstream server ({self._kind}) {how}."
