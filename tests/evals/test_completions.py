"""Function bodies: found by Python's parser, cut where they end, judged without being run."""

import ast
import inspect
import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.core.statistics import wilson
from puna.engine.generate import Completion, SamplingParams
from puna.evals.completions import Head, classify_body, completions, cut_body, function_heads, heads_in

SOURCE = textwrap.dedent('''
    """A module."""
    import os

    def one(a, b=(1, 2)):
        """Its docstring must not be given away."""
        return a

    class C:
        @property
        async def two(
            self,
            x: int,
        ) -> dict[str, int]:

            # a comment
            with x:
                pass

        def short(self): return 1

    def outer():
        def inner(y):
            return y
        return inner
''')


def test_heads_are_whole_and_give_nothing_away():
    heads = {head.head.split("(")[0].strip(): head for head in heads_in(SOURCE)}
    assert set(heads) == {"def one", "async def two", "def outer", "def inner"}
    assert heads["def one"].head == "def one(a, b=(1, 2)):\n"
    assert heads["def one"].context.endswith("import os\n\n")
    assert heads["async def two"].head.endswith(") -> dict[str, int]:\n")
    assert heads["async def two"].indent == "    "
    assert heads["def outer"].head == "def outer():\n"
    assert all("docstring" not in head.head for head in heads.values())


@pytest.mark.parametrize("module", [json.decoder, ast, inspect, textwrap])
def test_every_real_body_is_judged_parsed(module):
    source = Path(module.__file__).read_text()
    heads = heads_in(source)
    assert len(heads) > 5
    for head in heads:
        rest = source[len(head.context) + len(head.head) :]
        assert source.startswith(head.context + head.head)
        body = cut_body(rest, head.indent, whole=True)
        assert classify_body(head, body) in ("parsed", "trivial"), head.head + body
        assert body.strip() in source


def test_files_that_are_not_python_have_no_heads():
    assert heads_in("def f(:\n  pass") == []
    assert heads_in("\0") == []
    assert heads_in("(" * 5000) == []


@pytest.mark.parametrize(
    ("text", "whole", "body"),
    [
        ("    return 1\n", True, "    return 1\n"),
        ("    return 1\nprint(2)\n", False, "    return 1\n"),
        ("    a = 1\n\n    return a\n\n\ndef g():\n    pass\n", False, "    a = 1\n\n    return a\n"),
        ("    a = 1\n    return unfinis", False, "    a = 1\n"),
        ("    a = 1\n    return finished", True, "    a = 1\n    return finished\n"),
        ("return 1\n", True, "\n"),
        ("", False, "\n"),
    ],
)
def test_a_body_ends_where_the_indentation_does(text, whole, body):
    assert cut_body(text, "", whole=whole) == body


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("    return 1\n", "parsed"),
        ("    raise NotImplementedError\n", "parsed"),
        ("    if x:\n        pass\n", "parsed"),
        ("    pass\n", "trivial"),
        ("    ...\n", "trivial"),
        ('    """Only words."""\n', "trivial"),
        ("    return\n", "trivial"),
        ("    return None\n", "trivial"),
        ("    # nothing\n", "empty"),
        ("\n\n", "empty"),
        ("    return (\n", "refused"),
        ("  a = 1\n   b = 2\n", "refused"),
        ("    \0\n", "refused"),
        ("    '\\d'\n    return x\n", "parsed"),
    ],
)
def test_verdicts(body, verdict, recwarn):
    assert classify_body(Head("", "", "def f(x):\n", ""), body) == verdict
    inner = Head("", "class C:\n", "    def f(x):\n", "    ")
    assert classify_body(inner, textwrap.indent(body, "    ")) == verdict
    assert not recwarn.list


def test_nothing_is_ever_run(tmp_path):
    witness = tmp_path / "ran"
    body = f"    open({str(witness)!r}, 'w')\n"
    assert classify_body(Head("", "", "def f(x=1):\n", ""), body) == "parsed"
    evil = Head("", "", f"def f(x=open({str(witness)!r}, 'w')):\n", "")
    assert classify_body(evil, "    return 1\n") == "parsed"
    assert not witness.exists()


@settings(deadline=None)
@given(
    st.text(st.sampled_from("ab:()[]'\"\\\n\t #=,"), max_size=60), st.sampled_from(["", "    ", "\t"]), st.booleans()
)
def test_any_text_gets_a_verdict(text, indent, whole):
    head = Head("", "", f"{indent}def f():\n", indent)
    body = cut_body(text, indent, whole=whole)
    assert classify_body(head, body) in ("parsed", "trivial", "empty", "refused")
    if classify_body(head, body) == "parsed":
        tree = ast.parse(f"if True:\n{head.head}{body}" if indent else head.head + body)
        assert len(tree.body) == 1  # nothing leaked out of the function


# -- with an engine ----------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of characters."""

    bos_id = 1

    def encode(self, text):
        return [ord(char) + 2 for char in text]

    def decode_bytes(self, ids):
        return "".join(chr(i - 2) for i in ids if i > 1).encode()


class Canned:
    """An engine that answers from a list and remembers what it was asked."""

    def __init__(self, answers, context=400):
        self.tokenizer = Letters()
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context))
        self.answers, self.asked = answers, []

    def generate(self, prompts, params):
        self.asked = list(zip(prompts, params, strict=True))
        return [
            Completion(ids=[], text=text, logprobs=[], finish_reason=reason)
            for (text, reason), _ in zip(self.answers, prompts, strict=True)
        ]


def corpus_of(*texts):
    def documents(split):
        assert split == "heldout"
        for index, text in enumerate(texts):
            yield f"f{index}.py", "code", "MIT", np.array([1, *Letters().encode(text)])

    return SimpleNamespace(documents=documents, tokenizer=Letters())


def test_counts_are_those_of_the_verdicts():
    heads = [Head("a.py", "import os\n", f"def f{i}():\n", "") for i in range(5)]
    engine = Canned(
        [
            ("    return 1", "stop"),
            ("    pass\n", "stop"),
            ("", "stop"),
            ("    return (\n    x", "length"),
            ("    a = 1\n    b = ", "length"),
        ]
    )
    result = completions(engine, heads, temperature=0.7, seed=5, max_tokens=30)
    assert (result["sampled"], result["parsed"], result["trivial"], result["empty"]) == (5, 2, 1, 1)
    assert result["interval"] == pytest.approx(wilson(2, 5))
    assert [sample["verdict"] for sample in result["samples"]] == ["parsed", "trivial", "empty", "refused", "parsed"]
    params = [param for _, param in engine.asked]
    assert [param.seed for param in params] == [5, 6, 7, 8, 9]
    assert all(isinstance(param, SamplingParams) and param.temperature == 0.7 for param in params)


def test_prompts_fit_the_context_and_end_with_the_head():
    heads = [
        Head("a.py", "x = 1\n" * 500, "def f():\n", ""),
        Head("a.py", "", "def g(" + "a, " * 200 + "b):\n", ""),  # alone too long for the room there is
    ]
    engine = Canned([("    return 1\n", "stop")], context=100)
    assert completions(engine, heads, max_tokens=40)["sampled"] == 1
    ((prompt, param),) = engine.asked
    assert len(prompt) == 60
    assert prompt[0] == 1
    assert Letters().decode_bytes(prompt).endswith(b"x = 1\ndef f():\n")
    assert param.max_tokens == 40
    completions(engine, heads[:1], max_tokens=40, context_tokens=20)
    assert len(engine.asked[0][0]) == 20


def test_heads_are_chosen_by_seed_from_python_documents():
    many = "\n".join(f"def f{i}(a):\n    return a\n" for i in range(60))
    corpus = corpus_of(many, "Plain words, no code (", SOURCE)
    heads = function_heads(corpus, limit=10, seed=1)
    assert len(heads) == 10
    assert heads == function_heads(corpus, limit=10, seed=1)
    assert heads != function_heads(corpus, limit=10, seed=2)
    assert len(function_heads(corpus, limit=1000)) == 20 + 4  # at most 20 from one document
    with pytest.raises(PunaError, match="contains a Python function"):
        function_heads(corpus_of("no code here ("))


def test_a_model_without_a_tokenizer_is_refused():
    engine = Canned([])
    engine.tokenizer = None
    with pytest.raises(PunaError, match="no tokenizer"):
        completions(engine, [])
