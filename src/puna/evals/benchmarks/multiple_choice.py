"""Multiple choice, by which option the model finds likeliest: knowledge, common sense and reading.

Formats are those of lm-evaluation-harness, so that scores are comparable: a question, a space and each answer's text
(MMLU: the letters A to D after five examples of the subject). Where long answers would lose by their length alone, the
log probability is divided by the number of characters.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from puna.evals.contract import Benchmark, Choices, Item, Score, exact_continuation, most_likely
from puna.evals.datasets import EvalData, OnHub, Row

LETTERS = "ABCDEFGHIJ"
Load = Callable[[EvalData], list[Item]]


def item(
    id: Any, context: str, choices: Sequence[str], right: int, *, group: str = "", body: str = "", join: str = " "
) -> Item:
    """Make a question with one context for all its choices."""
    return Item(
        str(id), Choices.after(context, choices, join=join), right, group, body or f"{context} {choices[right]}"
    )


def lettered(question: str, choices: Sequence[str]) -> str:
    """Write a question with its choices as lines A to J, up to "Answer:"."""
    lines = "".join(f"{letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))
    return f"{question.strip()}\n{lines}Answer:"


def _from_rows(name: str, columns: Sequence[str], hub: OnHub | None, make: Callable[[int, Row], Item]) -> Load:
    def load(data: EvalData) -> list[Item]:
        return [make(n, row) for n, row in enumerate(data.rows(f"mc/{name}.jsonl", *columns, hub=hub))]

    return load


def _arc(number: int, row: Row) -> Item:
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    return item(row["id"], f"Question: {row['question']}\nAnswer:", texts, labels.index(row["answerKey"]))


def _openbook(number: int, row: Row) -> Item:
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    return item(row["id"], row["question_stem"], texts, labels.index(row["answerKey"]))


def _commonsense(number: int, row: Row) -> Item:
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    right = labels.index(row["answerKey"])
    asked = lettered(f"Question: {row['question']}", texts)
    return item(row["id"], asked, LETTERS[: len(texts)], right, body=f"{row['question']} {texts[right]}")


def _hellaswag(number: int, row: Row) -> Item:
    return item(row["ind"], row["ctx"], row["endings"], int(row["label"]))


def _piqa(number: int, row: Row) -> Item:
    return item(number, f"Question: {row['goal']}\nAnswer:", (row["sol1"], row["sol2"]), int(row["label"]))


def _boolq(number: int, row: Row) -> Item:
    asked = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return item(number, asked, ("no", "yes"), int(row["answer"]))


def _siqa(number: int, row: Row) -> Item:
    answers = [row[f"answer{letter}"] for letter in "ABC"]
    return item(number, f"Q: {row['context']} {row['question']}\nA:", answers, int(row["label"]) - 1)


def _winogrande(number: int, row: Row) -> Item:
    before, _, after = row["sentence"].partition("_")
    options = (row["option1"], row["option2"])
    right = int(row["answer"]) - 1
    contexts = tuple(before + option for option in options)
    ask = Choices(contexts, (" " + after.strip(),) * 2)
    return Item(str(number), ask, right, body=before + options[right] + after, reference=options[right])


def _mmlu(data: EvalData) -> list[Item]:
    columns = ("subject", "question", "choices", "answer")
    examples: dict[str, list[Row]] = {}
    for row in data.rows("mmlu/mmlu_dev.jsonl", *columns, hub=OnHub("cais/mmlu", "all", "dev")):
        examples.setdefault(row["subject"], []).append(row)
    heads = {
        subject: f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        + "".join(f"{lettered(r['question'], r['choices'])} {LETTERS[r['answer']]}\n\n" for r in rows[:5])
        for subject, rows in examples.items()
    }
    rows = data.rows("mmlu/mmlu_test.jsonl", *columns, hub=OnHub("cais/mmlu", "all", "test"))
    return [
        item(
            number,
            heads.get(row["subject"], "") + lettered(row["question"], row["choices"]),
            LETTERS[: len(row["choices"])],
            row["answer"],
            group=row["subject"],
            body=f"{row['question']} {row['choices'][row['answer']]}",
        )
        for number, row in enumerate(rows)
    ]


def _truthful(data: EvalData) -> Iterator[tuple[int, Row, str]]:
    columns = ("Category", "Question", "Best Answer", "Best Incorrect Answer", "Correct Answers", "Incorrect Answers")
    for number, row in enumerate(data.rows("truthfulqa/TruthfulQA.csv", *columns)):
        yield number, row, f"Q: {row['Question']}\nA:"


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _one_true(number: int, asked: str, true: str, false: list[str], group: str) -> Item:
    """Put the true answer at a position that gives nothing away, not always first."""
    place = number % (len(false) + 1)
    return item(number, asked, [*false[:place], true, *false[place:]], place, group=group)


def _truthful_one(data: EvalData) -> list[Item]:
    return [
        _one_true(n, asked, row["Best Answer"], _listed(row["Incorrect Answers"]), row["Category"])
        for n, row, asked in _truthful(data)
    ]


def _truthful_two(data: EvalData) -> list[Item]:
    return [
        _one_true(n, asked, row["Best Answer"], [row["Best Incorrect Answer"]], row["Category"])
        for n, row, asked in _truthful(data)
    ]


def _truthful_all(data: EvalData) -> list[Item]:
    items = []
    for n, row, asked in _truthful(data):
        true, false = _listed(row["Correct Answers"]), _listed(row["Incorrect Answers"])
        ask = Choices.after(asked, [*true, *false])
        items.append(Item(str(n), ask, len(true), row["Category"], f"{asked} {row['Best Answer']}", true[0]))
    return items


def true_share(item: Item, response: Sequence[Any]) -> Score:
    """Score the probability on the true answers, which are the first item.target choices."""
    import math

    top = max(one.logprob for one in response)
    weights = [math.exp(one.logprob - top) for one in response]
    value = math.fsum(weights[: item.target]) / math.fsum(weights)
    return Score(value, f"{value:.0%} on true answers", parts={"probability": value})


def _true_chance(items: Sequence[Item]) -> float:
    return sum(one.target / len(one.ask.continuations) for one in items if isinstance(one.ask, Choices)) / len(items)


def _lambada(data: EvalData) -> list[Item]:
    rows = data.rows("icl/language_understanding/lambada_openai.jsonl", "context", "continuation")
    items = []
    for n, row in enumerate(rows):
        context, word = row["context"], row["continuation"]
        items.append(Item(str(n), Choices((context,), (" " + word,)), 0, body=f"{context} {word}", reference=word))
    return items


def _choice(name: str, title: str, load: Load, by: str, prompt: str, source: str, *suites: str) -> Benchmark:
    counted = {"sum": "", "character": ", log probability per character"}[by]
    return Benchmark(
        name,
        title,
        suites or ("knowledge",),
        load,
        most_likely(by),
        f"zero-shot; {prompt}",
        f"accuracy{counted}",
        source,
    )


_QUESTION = "'Question: …\\nAnswer:' and each answer's text"
BENCHMARKS = (
    Benchmark("mmlu", "MMLU", ("knowledge",), _mmlu, most_likely("sum"),
              "5-shot; the subject's five development questions, choices A to D, the likeliest letter", "accuracy",
              "Hendrycks et al. 2020 (arXiv 2009.03300), test set, MIT"),
    _choice("arc_easy", "ARC-Easy",
            _from_rows("arc_easy_validation", ("id", "question", "choices", "answerKey"),
                       OnHub("allenai/ai2_arc", "ARC-Easy", "validation"), _arc),
            "character", _QUESTION, "Clark et al. 2018 (arXiv 1803.05457), validation set, CC-BY-SA-4.0"),
    _choice("arc_challenge", "ARC-Challenge",
            _from_rows("arc_challenge_validation", ("id", "question", "choices", "answerKey"),
                       OnHub("allenai/ai2_arc", "ARC-Challenge", "validation"), _arc),
            "character", _QUESTION, "Clark et al. 2018 (arXiv 1803.05457), validation set, CC-BY-SA-4.0"),
    _choice("hellaswag", "HellaSwag",
            _from_rows("hellaswag_val_1000", ("ind", "ctx", "endings", "label"),
                       None, _hellaswag),
            "character", "the beginning of a text and four endings",
            "Zellers et al. 2019 (arXiv 1905.07830), a 1,000-item sample of the validation set, MIT"),
    _choice("piqa", "PIQA",
            _from_rows("piqa_validation", ("goal", "sol1", "sol2", "label"),
                       OnHub("ybisk/piqa", "plain_text", "validation"), _piqa),
            "character", _QUESTION, "Bisk et al. 2019 (arXiv 1911.11641), validation set, AFL-3.0"),
    _choice("boolq", "BoolQ",
            _from_rows("boolq_validation", ("question", "answer", "passage"),
                       OnHub("google/boolq", "default", "validation"), _boolq),
            "sum", "a passage, 'Question: …?\\nAnswer:', no or yes",
            "Clark et al. 2019 (arXiv 1905.10044), validation set, CC-BY-SA-3.0"),
    _choice("winogrande", "WinoGrande",
            _from_rows("winogrande_xl_validation", ("sentence", "option1", "option2", "answer"),
                       OnHub("allenai/winogrande", "winogrande_xl", "validation"), _winogrande),
            "sum", "which of two names in its place makes the rest of the sentence likelier",
            "Sakaguchi et al. 2019 (arXiv 1907.10641), validation set, CC-BY"),
    _choice("openbookqa", "OpenBookQA",
            _from_rows("openbookqa_validation", ("id", "question_stem", "choices", "answerKey"),
                       OnHub("allenai/openbookqa", "main", "validation"), _openbook),
            "character", "the question, without any fact, and each answer's text",
            "Mihaylov et al. 2018 (arXiv 1809.02789), validation set, Apache-2.0"),
    _choice("commonsense_qa", "CommonsenseQA",
            _from_rows("commonsense_qa_validation", ("id", "question", "choices", "answerKey"),
                       OnHub("tau/commonsense_qa", "default", "validation"), _commonsense),
            "sum", "'Question: …', choices A to E, the likeliest letter",
            "Talmor et al. 2018 (arXiv 1811.00937), validation set, MIT"),
    _choice("social_iqa", "Social IQa",
            _from_rows("social_i_qa_validation", ("context", "question", "answerA", "answerB", "answerC", "label"),
                       OnHub("allenai/social_i_qa", "default", "validation"), _siqa),
            "sum", "'Q: context question\\nA:' and each answer's text",
            "Sap et al. 2019 (arXiv 1904.09728), validation set, CC-BY-4.0"),
    Benchmark("lambada", "LAMBADA", ("knowledge",), _lambada, exact_continuation,
              "zero-shot; a passage without its last word", "every token of the last word is the likeliest",
              "Paperno et al. 2016 (arXiv 1606.06031), OpenAI's version of the test set, CC-BY-4.0", chance=0.0),
    _choice("truthfulqa_mc1", "TruthfulQA (one true)", _truthful_one, "sum",
            "'Q: …\\nA:', without the six examples others put before it; the best answer and all false ones",
            "Lin et al. 2021 (arXiv 2109.07958), revision of 2025, Apache-2.0"),
    _choice("truthfulqa_binary", "TruthfulQA (two choices)", _truthful_two, "sum",
            "'Q: …\\nA:'; the best answer and the best false one",
            "Lin et al. 2021 (arXiv 2109.07958), revision of 2025, Apache-2.0"),
    Benchmark("truthfulqa_mc2", "TruthfulQA (probability)", ("knowledge",), _truthful_all, true_share,
              "zero-shot; 'Q: …\\nA:'; all true and all false answers", "probability on the true answers",
              "Lin et al. 2021 (arXiv 2109.07958), revision of 2025, Apache-2.0", chance=_true_chance),
)  # fmt: skip
