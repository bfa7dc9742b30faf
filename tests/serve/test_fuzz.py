"""Requests made from our own description of the API: none breaks the server, and each refusal is an error object."""

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"]


@pytest.mark.parametrize("path", PATHS)
def test_no_request_breaks_it(live, path: str) -> None:
    operation = schemathesis.openapi.from_dict(live.api.get("/openapi.json").json())[path]["POST"]

    @settings(max_examples=15, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(operation.as_strategy())
    def ask(case) -> None:
        if isinstance(case.body, dict):
            # What a text costs is not what is tested.
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
                if isinstance(case.body.get(name), int):
                    case.body[name] = min(case.body[name], 3)
        answer = case.call(base_url=live.url, timeout=60)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    ask()
    assert live.settled()
