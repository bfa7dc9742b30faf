"""Runs EleutherAI's lm-evaluation-harness on Puna's engine (the extra `lm-eval`).

The harness brings its tasks, prompts and metrics; Puna answers its three kinds of requests through `generation`, like
its own benchmarks, so that the same items and prompts get the same scores (`bench/lm_eval_scores.py` shows it). The
harness's stock tasks fetch their data from the Hub; local ones are described by YAML files in a folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError
from puna.engine.generate import Engine, SamplingParams
from puna.evals.generation import begin_ids, fitted, likelihoods, score_ids, tokenizer_of
from puna.text.tokenizer import Tokenizer


def engine_model(engine: Engine, *, chat: bool = False) -> Any:
    """Wrap the engine as a model of the harness. chat: the chat template rendered the prompts, with special tokens.

    Raises PunaError if the harness is not installed.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.models.utils import normalize_gen_kwargs
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError:
        raise PunaError(
            "Running lm-eval's tasks needs the package lm-eval, 0.4.10 or later.", "pip install 'puna[lm-eval]'."
        ) from None
    tokenizer: Tokenizer = tokenizer_of(engine)
    longest = engine.model.config.max_position_embeddings

    class EngineModel(LM):  # type: ignore[misc, unused-ignore]
        """Loglikelihoods, rolling loglikelihoods and texts."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            found = likelihoods(engine, [request.args for request in requests])
            return [(one.likelihood.logprob, one.likelihood.greedy) for one in found]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            first = begin_ids(tokenizer)
            if not first:
                raise PunaError("The tokenizer has no token to begin a document with.", "Add one to its files.")
            totals = []
            for number, request in enumerate(requests, 1):
                ids = tokenizer.encode(request.args[0])
                if not ids:
                    raise PunaError(f"Document {number} of the task is empty: it has no token to score.", "Remove it.")
                windows = get_rolling_token_windows(ids, first[0], longest - 1, 1)
                pairs = [make_disjoint_window(window) for window in windows]
                totals.append(sum(one.likelihood.logprob for one in score_ids(engine, pairs)))
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            prompts, params = [], []
            for number, request in enumerate(requests):
                text, given = request.args
                wanted = normalize_gen_kwargs(given)
                ids = tokenizer.encode(text, bos=not chat, special=chat) or tokenizer.eos_ids[:1]
                limit = int(wanted["max_gen_toks"])
                prompts.append(fitted(ids, tokenizer, longest, limit)[0])
                params.append(
                    SamplingParams(
                        max_tokens=limit,
                        temperature=float(wanted.get("temperature") or 0.0),
                        top_p=float(wanted.get("top_p") or 1.0),
                        seed=number,
                        stop=tuple(stop for stop in wanted["until"] if stop),
                    )
                )
            return [one.text for one in engine.generate(prompts, params)] if prompts else []

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.hash[:16]

        def chat_template(self, chat_template: bool | str = False) -> str:
            from puna.text.templates import CHAT_TEMPLATE

            return tokenizer.chat_template or CHAT_TEMPLATE

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            import jinja2

            template = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).from_string(self.chat_template())
            begin = "" if tokenizer.bos_id is None else tokenizer.shown_bytes(tokenizer.bos_id).decode()
            return template.render(
                messages=chat_history, bos_token=begin, add_generation_prompt=add_generation_prompt, tools=None
            )

    return EngineModel()


def run_harness(
    engine: Engine, tasks: Sequence[str], *, limit: int | None = None, include: Path | None = None, chat: bool = False
) -> dict[str, Any]:
    """Run `tasks` and return the harness's own {"results", "n-samples", "versions", "configs"}.

    include: a folder of task files. Raises PunaError if the harness is not installed, does not know a task, or cannot
    fetch its data.
    """
    model = engine_model(engine, chat=chat)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    known = set(manager.all_tasks)
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise PunaError(
            f"lm-eval has no task '{unknown[0]}'.", "See: lm-eval ls tasks; local ones are found with --include."
        )
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat,
            log_samples=False,
            random_seed=0,
            confirm_run_unsafe_code=False,
        )
    except (OSError, ConnectionError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PunaError(
            f"lm-eval could not run {', '.join(tasks)} ({first}).", "Check the network and the tasks."
        ) from error
    return {key: found[key] for key in ("results", "n-samples", "versions", "n-shot", "configs") if key in found}
