"""Questions answered in a few words, from memory or from a passage: TriviaQA, Natural Questions, XQuAD."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData, OnHub

SHOTS = 5


def normalised(text: str) -> str:
    """Normalize as SQuAD does (arXiv 1606.05250): lower case, no punctuation, articles or repeated spaces."""
    text = "".join(c for c in text.lower() if not unicodedata.category(c).startswith(("P", "S")))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def short_answer(item: Item, response: str) -> Score:
    """Score 1 if the first line is one of the answers in item.target, both normalized. parts: f1, common words."""
    found = response.strip().split("\n")[0][:500]
    said = normalised(found)
    right = any(said == normalised(one) for one in item.target)
    overlap = max(f1(said, normalised(one)) for one in item.target)
    return Score(float(right), found, "" if right else "another answer", {"f1": overlap})


def f1(one: str, other: str) -> float:
    """Harmonic mean of precision and recall of words; of characters for text without spaces (Chinese)."""
    first, second = _units(one), _units(other)
    common = sum((Counter(first) & Counter(second)).values())
    return 2 * common / (len(first) + len(second)) if first and second else float(first == second)


def _units(text: str) -> list[str]:
    return text.split() if " " in text or text.isascii() else list(text)


def _closed_book(name: str, asked: Sequence[tuple[str, str, list[str]]]) -> list[Item]:
    """Questions after five others of the same set, the same for all."""
    order = sorted(range(len(asked)), key=lambda n: hashlib.sha256(f"{name}/{asked[n][0]}".encode()).digest())
    items = []
    for number, (id, question, answers) in enumerate(asked):
        shots = [asked[n] for n in order[: SHOTS + 1] if n != number][:SHOTS]
        before = "".join(f"Question: {text}\nAnswer: {right[0]}\n\n" for _, text, right in shots)
        prompt = f"{before}Question: {question}\nAnswer:"
        instructed = f"{question}\n\nAnswer with the name, number or phrase alone."
        ask = Text(prompt, ("\n",), max_tokens=32, messages=({"role": "user", "content": instructed},))
        items.append(Item(id, ask, answers, body=f"{question} {answers[0]}", reference=f" {answers[0]}"))
    return items


def _trivia(data: EvalData) -> list[Item]:
    rows = data.rows("icl/world_knowledge/triviaqa_sm_sub.jsonl", "context", "answer", "aliases")
    strip = re.compile(r"^Question: |\nAnswer:$")
    return _closed_book(
        "triviaqa", [(str(n), strip.sub("", r["context"]), [r["answer"], *r["aliases"]]) for n, r in enumerate(rows)]
    )


def _natural(data: EvalData) -> list[Item]:
    rows = data.rows("mc/nq_open_validation.jsonl", "question", "answer",
                     hub=OnHub("google-research-datasets/nq_open", "nq_open", "validation"))  # fmt: skip
    return _closed_book("nq_open", [(str(n), f"{r['question']}?", list(r["answer"])) for n, r in enumerate(rows)])


def _xquad(data: EvalData) -> list[Item]:
    items = []
    for language in ("en", "de", "es", "zh"):
        for article in data.json(f"xquad/xquad.{language}.json")["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = [one["text"] for one in question["answers"]]
                    asked = f"Passage: {paragraph['context'].strip()}\nQuestion: {question['question']}\nAnswer:"
                    instructed = f"{asked.removesuffix(chr(10) + 'Answer:')}\n\nAnswer with words of the passage alone."
                    items.append(
                        Item(
                            f"{language}-{question['id']}",
                            Text(asked, ("\n",), max_tokens=48, messages=({"role": "user", "content": instructed},)),
                            answers,
                            group=language,
                            body=f"{paragraph['context']} {question['question']} {answers[0]}",
                            reference=f" {answers[0]}",
                        )
                    )
    return items


BENCHMARKS = (
    Benchmark("triviaqa", "TriviaQA", ("knowledge",), _trivia, short_answer,
              "5-shot, closed book; five questions of the same set; the first line",
              "one of the answers, without case, articles and punctuation",
              "Joshi et al. 2017 (arXiv 1705.03551), MosaicML's sample of 3,000, Apache-2.0"),
    Benchmark("nq_open", "Natural Questions", ("knowledge",), _natural, short_answer,
              "5-shot, closed book; five questions of the same set; the first line",
              "one of the answers, without case, articles and punctuation",
              "Lee et al. 2019 (arXiv 1906.00300), validation set, CC-BY-SA-3.0"),
    Benchmark("xquad", "XQuAD", ("reading",), _xquad, short_answer,
              "zero-shot; 'Passage: …\\nQuestion: …\\nAnswer:' in English, German, Spanish and Chinese; the first line",
              "one of the answers, without case, articles and punctuation; f1 as well",
              "Artetxe et al. 2019 (arXiv 1910.11856), CC-BY-SA-4.0"),
)  # fmt: skip
