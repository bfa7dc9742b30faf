"""Measures the share of sampled function bodies that Python's parser accepts: a first measure of writing code.

Function heads come from held-out files, with the text before them in the file as context; the model writes the body,
which ends where the indentation does. Nothing that a model wrote is run: `ast.parse` only reads. Bodies that parse and
do nothing (`pass`, `...`, a docstring, an empty return) are counted separately; otherwise a model that always writes
`pass` would be perfect.
"""

import ast
import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from puna.core.errors import PunaError
from puna.core.statistics import wilson
from puna.data.corpus import Corpus
from puna.engine.generate import Engine, SamplingParams

MAX_SOURCE = 1_000_000
"""Larger documents, in bytes, are left out: such files are tables, not code."""


@dataclass(frozen=True)
class Head:
    """A function without its body. A docstring belongs to the body and is not part of the head."""

    document: str
    context: str  # the text before it in the file
    head: str  # "def name(args):\n", with its indentation, perhaps over several lines
    indent: str  # indentation of the def


def function_heads(corpus: Corpus, *, split: str = "heldout", limit: int = 200, seed: int = 0) -> list[Head]:
    """Return up to `limit` function heads from the split's Python documents, chosen by `seed`, at most 20 from one
    document.

    Raises PunaError if no document contains a Python function.
    """
    choose = random.Random(seed)
    found: list[Head] = []
    for name, _, _, ids in corpus.documents(split):
        text = corpus.tokenizer.decode_bytes(ids.tolist()).decode("utf-8", errors="replace")
        heads = heads_in(text, name)
        found += choose.sample(heads, min(20, len(heads)))
    if not found:
        raise PunaError(
            f"No document in the {split} part of the corpus contains a Python function.",
            "Measure completions on a corpus with Python files.",
        )
    return choose.sample(found, min(limit, len(found)))


def heads_in(source: str, document: str = "") -> list[Head]:
    """Return every function of a Python file whose body starts on its own line; none if the file does not parse."""
    tree = _parse(source) if len(source) <= MAX_SOURCE else None
    if tree is None:
        return []
    lines = source.splitlines(keepends=True)
    heads = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first, stop = node.lineno - 1, node.body[0].lineno - 1
        if isinstance(node.body[0], ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            stop = min([stop, *(decorator.lineno - 1 for decorator in node.body[0].decorator_list)])
        while stop > first and not lines[stop - 1].rstrip().endswith(":"):
            stop -= 1  # comments and blank lines between head and body
        head = "".join(lines[first:stop])
        indent = head[: len(head) - len(head.lstrip())]
        if stop > first and _parse(_wrapped(head + indent + " pass\n", indent)) is not None:
            heads.append(Head(document, "".join(lines[:first]), head, indent))
    return heads


def completions(
    engine: Engine,
    heads: Sequence[Head],
    *,
    temperature: float = 0.7,
    seed: int = 0,
    max_tokens: int = 128,
    context_tokens: int | None = None,
) -> dict[str, Any]:
    """Sample one body for each head and count those that parse.

    context_tokens: tokens of the file before the body, at most. Default: what max_tokens leaves of the model's context;
    for a model that was trained on sequences shorter than its context, give no more than those.
    Sample i uses seed + i. A body that reaches max_tokens is judged up to its last complete line.

    Returns sampled, parsed (accepted and doing something), trivial (accepted, doing nothing), empty (no code at all;
    the others were refused), share (parsed of sampled), interval (Wilson, 95 %), temperature, max_tokens and samples,
    a list of {document, prompt, text, verdict}.
    """
    tokenizer = engine.tokenizer
    if tokenizer is None:
        raise PunaError("The model has no tokenizer, so it cannot be given function heads.", "Add tokenizer.json.")
    longest = engine.model.config.max_position_embeddings - max_tokens
    room = min(longest, context_tokens or longest)
    prompts, used = [], []
    for head in heads:
        ids = tokenizer.encode(head.context + head.head)
        start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        tail = ids[max(0, len(ids) - room + len(start)) :]
        if len(tokenizer.encode(head.head)) <= room - len(
            start
        ):  # a head that does not fit would not be a fair question
            prompts.append(start + tail)
            used.append(head)
    params = [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed + index, stop=_stops(head.indent))
        for index, head in enumerate(used)
    ]
    results = engine.generate(prompts, params) if prompts else []
    counts = dict.fromkeys(("parsed", "trivial", "empty", "refused"), 0)
    samples = []
    for head, result in zip(used, results, strict=True):
        body = cut_body(result.text, head.indent, whole=result.finish_reason == "stop")
        verdict = classify_body(head, body)
        counts[verdict] += 1
        samples.append({"document": head.document, "prompt": head.head, "text": body, "verdict": verdict})
    low, high = wilson(counts["parsed"], len(used))
    return {
        "sampled": len(used),
        "parsed": counts["parsed"],
        "trivial": counts["trivial"],
        "empty": counts["empty"],
        "share": counts["parsed"] / len(used) if used else None,
        "interval": [low, high],
        "temperature": temperature,
        "max_tokens": max_tokens,
        "samples": samples,
    }


def cut_body(text: str, indent: str, *, whole: bool) -> str:
    """Return the lines of `text` that belong to the body of a function whose `def` is indented by `indent`.

    The body ends at the first line of code that is not indented deeper than the `def`. whole: the text ended by itself;
    otherwise, if there is no such line, the last line was cut off in the middle and is left out.
    """
    lines = text.splitlines(keepends=True)
    depth = len(indent.expandtabs())
    body = []
    for line in lines:
        bare = line.expandtabs()
        if bare.strip() and len(bare) - len(bare.lstrip()) <= depth:
            whole = True
            break
        body.append(line)
    if not whole and body and not body[-1].endswith("\n"):
        body.pop()
    return "".join(body).rstrip() + "\n"


def classify_body(head: Head, body: str) -> str:
    """Return 'parsed', 'trivial' (parses and does nothing), 'empty' (no code) or 'refused' by the parser."""
    if not any(line.strip() and not line.strip().startswith("#") for line in body.splitlines()):
        return "empty"
    tree = _parse(_wrapped(head.head + body, head.indent))
    if tree is None:
        return "refused"
    function: Any = tree.body[0]
    if head.indent:
        function = function.body[0]
    return "trivial" if all(map(_does_nothing, function.body)) else "parsed"


def _does_nothing(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Return):
        return node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
    return isinstance(node, ast.Pass)


def _wrapped(code: str, indent: str) -> str:
    """Wrap indented code so that it is a complete file."""
    return f"if True:\n{code}" if indent else code


def _parse(code: str) -> ast.Module | None:
    """Parse Python; None for anything else. Nothing is compiled or run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _stops(indent: str) -> tuple[str, ...]:
    """Stop strings: they can only come after the body."""
    return tuple(
        f"\n{space}{word}" for space in dict.fromkeys(("", indent)) for word in ("def ", "class ", "@", "async ")
    )
