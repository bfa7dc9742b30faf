"""Tables of the engine, the server and the exports, for the benchmarks page."""

from typing import Any

import plan_tables


def engine_speed(results: dict[str, Any]) -> str:
    """Tokens per second of each contender and kind of work, and ratios."""
    measured = results["measured"]
    kinds = [kind for kind in measured if kind.endswith("tokens/s")]
    names = list(measured[kinds[0]])
    speeds = [[name, *(_median(measured[kind].get(name)) for kind in kinds)] for name in names]
    pairs = list(next(iter(results["ratios"].values())))
    ratios = [[pair, *(f"{results['ratios'][kind].get(pair, 0):.2f}" for kind in kinds)] for pair in pairs]
    heads = [kind.removesuffix(" tokens/s") for kind in kinds]
    prefix = {kind: next(iter(of.values()))["median"] for kind, of in measured.items() if kind.startswith("prefix")}
    told = (
        f"First token of prompts with 1,000 tokens in common: {prefix['prefix first token ms with cache']:.0f} ms with "
        f"the prefix cache, {prefix['prefix first token ms without cache']:.0f} ms without, "
        f"{prefix['prefix ratio']:.0f} times as long."
        if prefix
        else ""
    )
    return "\n\n".join(
        (
            plan_tables.markdown(["tokens/s, median", *heads], speeds),
            plan_tables.markdown(["ratio, median of the rounds", *heads], ratios),
            told,
        )
    )


def serve_overhead(results: dict[str, Any]) -> str:
    """Throughput of the server compared with the engine alone."""
    rows = [
        [name, f"{v['median']:,.0f}", f"{v['min']:,.0f} to {v['max']:,.0f}"]
        for name, v in results["tokens_per_second"].items()
    ]
    ratio = results["server / engine"]
    return (
        plan_tables.markdown(["", "tokens/s, median", "range"], rows)
        + f"\n\nThe server reaches {ratio['median']:.1%} ({ratio['min']:.1%} to {ratio['max']:.1%}) of the engine."
    )


def _median(spread: dict[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['median']:,.0f}"


def conformance(results: dict[str, Any]) -> str:
    """The response of each server to each case; a dagger marks those that are not as good as the best."""
    rows = results["rows"]
    names = [name for name in rows[0] if name != "row"]
    right = [f"{sum(bool(row.get(name, {}).get('right')) for row in rows)} of {len(rows)}" for name in names]
    told = [[row["row"], *(_came(row.get(name)) for name in names)] for row in rows]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    table = plan_tables.markdown(["case", *names], [["**right**", *right], *told])
    measured = results.get("measured", {})
    dates = "; ".join(f"{name}: {when}" for name, when in measured.items()) if len(set(measured.values())) > 1 else ""
    note = f" Columns were measured on different days: {dates}." if dates else ""
    return f"{table}\n\n† not as good as the best column, or not an OpenAI error object. {versions}.{note}"


def lm_eval(results: dict[str, Any]) -> str:
    """Scores of Puna's evaluations, of lm-eval on its engine and through its server, on the same rows."""
    rows = [
        [
            name,
            f"{task['rows']}",
            _scores(task["ours"]),
            _scores(task["in_process"]),
            _scores(task["served"]),
            _apart(task, "in_process"),
            _apart(task, "served"),
        ]
        for name, task in results["tasks"].items()
    ]
    columns = [
        "task",
        "rows",
        "Puna",
        "lm-eval on the engine",
        "lm-eval, served",
        "difference: engine",
        "difference: served",
    ]
    return plan_tables.markdown(columns, rows)


def _apart(task: dict[str, Any], way: str) -> str:
    """The largest difference of a loglikelihood from `puna eval`'s, or the number of texts that differ."""
    largest = task.get(f"{way}_largest_difference")
    return f"{task[f'{way}_texts_that_differ']} texts" if largest is None else f"{largest:.0e}" if largest else "0"


def _came(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return "–"
    text = str(cell["came"]).replace("|", "\\|")
    return (text if len(text) <= 60 else f"{text[:57]}…") + ("" if cell["right"] else " †")


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in scores.items())


def gguf(results: dict[str, Any]) -> str:
    """An exported model in llama.cpp, compared with Puna."""
    rows = [
        [
            name.removeprefix("greedy "),
            ", ".join(map(str, run["equal_prefix"])),
            f"{run['logprob_difference_mean']:.2g}",
        ]
        for name, run in results.items()
        if name.startswith("greedy ")
    ]
    tokens, dialogues = results["tokenizer"], results["dialogues"]
    of = next(run["of"] for name, run in results.items() if name.startswith("greedy "))
    heads = ["GGUF", f"greedy tokens as Puna's in float32, of {of}, by prompt", "mean difference of log probabilities"]
    told = (
        f"Its tokenizer gives other ids than Puna's for {tokens['different']} of {tokens['strings']:,} strings, and "
        f"its Jinja renders {dialogues['equal']} of {dialogues['dialogues']} dialogues as Puna does. "
    )
    same = [
        f"{name} {run['same_bytes']} of {run['tensors']}"
        for name, run in results.get("llama-quantize", {}).items()
        if isinstance(run, dict)
    ]
    return f"{plan_tables.markdown(heads, rows)}\n\n{told}Tensors with the bytes of llama-quantize: {', '.join(same)}."


def gguf_quants(results: dict[str, Any]) -> str:
    """Differences between llama.cpp and Puna's network with the same quantized weights."""
    rows = [
        [
            scheme,
            ", ".join(f"{count} {kind}" for kind, count in run["tensors"].items()),
            str(run["same_greedy_token"]),
            f"{run['largest_logprob_difference']:.3f}",
            f"{run['largest_from_the_unquantized_model']:.2f}",
        ]
        for scheme, run in results.items()
    ]
    heads = [
        "GGUF",
        "tensors",
        "same most likely token",
        "largest difference of a log probability",
        "from the unquantized weights",
    ]
    return plan_tables.markdown(heads, rows)
