"""Answers in hundreds of forms have one reading each, and what is generated from a number reads back as that number."""

import re
import runpy
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.evals.benchmarks.mathematics import BENCHMARKS, math_answer, number_answer
from puna.evals.contract import Item, Text
from puna.evals.datasets import EvalData
from puna.evals.scoring.answers import LANGUAGES, MAX_TEXT, statements, without_markdown
from puna.evals.scoring.latex import final_answer, undressed
from puna.evals.scoring.math_equivalence import equivalent
from puna.evals.scoring.numbers import last_number, same_number, value

CORPUS = runpy.run_path(str(Path(__file__).with_name("answer_forms.py")))
NUMBERS, MATHEMATICS, OTHER = CORPUS["NUMBERS"], CORPUS["MATHEMATICS"], CORPUS["OTHER"]
FORMS = [(language, text, number) for language, forms in NUMBERS.items() for text, number in forms]


@pytest.mark.parametrize(("language", "text", "number"), FORMS)
def test_a_number_has_its_reading(language, text, number):
    found = last_number(text, language)
    assert found == number or (found is not None and same_number(found, number))
    score = number_answer(Item(f"{language}-1", Text(""), number or "0", group=language), text)
    assert score.value == (number is not None)


@pytest.mark.parametrize(("text", "answer"), MATHEMATICS)
def test_a_mathematical_answer_has_its_reading(text, answer):
    score = math_answer(Item("1", Text(""), answer), text)
    assert (score.value, score.reason) == (1.0, ""), score.answer


@pytest.mark.parametrize(("text", "answer"), OTHER)
def test_another_mathematical_answer_is_not_taken_for_it(text, answer):
    assert math_answer(Item("1", Text(""), answer), text).value == 0


def test_the_corpus_is_large_and_knows_every_language():
    assert len(FORMS) + len(MATHEMATICS) + len(OTHER) >= 400
    assert set(NUMBERS) == set(LANGUAGES)
    assert len({text for _, text, _ in FORMS}) > 250


@pytest.mark.parametrize("name", ["gsm8k", "mgsm", "math500", "math"])
def test_every_reference_is_right(test_data, name):
    benchmark = next(one for one in BENCHMARKS if one.name == name)
    items = benchmark.load(EvalData(test_data / "eval"))
    assert [item.id for item in items if benchmark.score(item, item.reference).value != 1] == []


# -- properties --------------------------------------------------------------------------------------------------------

SAYINGS = {
    "en": ("The answer is {}.", "The final answer is actually {}", "**Answer:** {}", "Answer: {} dollars"),
    "de": ("Die Antwort lautet {}.", "Antwort: {}", "**Endgültige Antwort:** {} Euro"),
    "es": ("La respuesta es {}.", "Respuesta final: {}", "**Respuesta:** {} euros"),
    "fr": ("La réponse est {}.", "Réponse : {}", "**La réponse finale est {}**"),
    "ru": ("Ответ: {}", "Ответ — {}.", "**Окончательный ответ:** {} рублей"),
    "ja": ("答えは{}です。", "答え：{}", "**最終的な答えは{}円です。**"),
    "zh": ("答案是{}。", "答案：{}", "**最终答案为 {} 元**"),
    "th": ("คำตอบคือ {}", "คำตอบ: {}", "**คำตอบสุดท้ายคือ {} บาท**"),
    "sw": ("Jibu ni {}.", "Jibu: {}", "**Jibu la mwisho ni {} shilingi**"),
}
GROUPED = {language: [",", " ", "'", "\u00a0", "\u202f", "{,}", r"\,", r",\!"] for language in SAYINGS}
for _language in ("de", "es", "fr", "ru"):
    GROUPED[_language] = [".", " ", "'", "\u00a0", "\u202f", "{.}", r"\,"]
DECIMAL = {"de": ",", "es": ",", "fr": ",", "ru": ","}
WRAPPED = ("{}", "${}$", r"\({}\)", "**{}**", "$${}$$", r"$\boxed{{{}}}$", "`{}`")
BEFORE = (
    "",
    "First, 3 + 4 = 7. Then 16 - 7 = 9.\n\n",
    "1. There are 12.\n2. So 5 are left.\n\n",
    "<think>Is it 4?</think>",
)
BEHIND = (
    "",
    "\n\nLet me know if you want 3 more examples!",
    " I hope this helps.",
    "\n\nIf you have 2 questions, ask.",
)


@st.composite
def written_numbers(draw):
    """(language, text, number): any number of up to twelve digits, as the language writes it."""
    language = draw(st.sampled_from(sorted(SAYINGS)))
    whole = draw(st.integers(0, 10 ** draw(st.integers(1, 12))))
    decimals = draw(st.sampled_from(["", "5", "25", "50", "0625"]))
    group = draw(st.sampled_from(["", *GROUPED[language]]))
    text = f"{whole:,}".replace(",", group)
    mark = DECIMAL.get(language, ".")
    text += f"{mark}{decimals}" if decimals else ""
    sign = draw(st.sampled_from(["", "-", "−"]))
    exact = Fraction(f"{whole}.{decimals or 0}")
    return language, f"{sign}{text}", -exact if sign else exact


@settings(max_examples=500, deadline=None)
@given(written_numbers(), st.data())
def test_a_written_number_reads_back(number, data):
    language, text, exact = number
    wrapped = data.draw(st.sampled_from(WRAPPED)).format(text)
    said = data.draw(st.sampled_from(SAYINGS[language])).format(wrapped)
    before, behind = data.draw(st.sampled_from(BEFORE)), data.draw(st.sampled_from(BEHIND))
    found = last_number(f"{before}{said}{behind}", language)
    assert found is not None
    assert value(found) == exact, f"{before}{said}{behind}"


@settings(max_examples=200, deadline=None)
@given(written_numbers(), written_numbers(), st.data())
def test_the_last_statement_counts(first, second, data):
    sayings = [data.draw(st.sampled_from(SAYINGS[language])).format(text) for language, text, _ in (first, second)]
    assert value(last_number("\n".join(sayings), second[0]) or "") == second[2]


@settings(max_examples=300, deadline=None)
@given(st.integers(-(10**9), 10**9), st.integers(1, 999), st.data())
def test_a_written_fraction_is_itself_in_any_dress(top, bottom, data):
    exact = Fraction(top, bottom)
    inside = rf"\frac{{{top}}}{{{bottom}}}"
    forms = (inside, rf"\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", rf"\tfrac{{{top:,}}}{{{bottom}}}")
    text = data.draw(st.sampled_from(forms))
    text = data.draw(
        st.sampled_from(
            ["{}", r"{}\text{{ cm}}", r"{} \mathrm{{~ft}}", "x = {}", r"\left{} \right".replace("{}", "({})")]
        )
    ).format(text)
    said = data.draw(
        st.sampled_from(
            [r"\boxed{{{}}}", r"The answer is \({}\).", "**Answer:** ${}$", "The final answer is ${}$. I hope so."]
        )
    ).format(text)
    found = final_answer(said)
    assert found is not None
    assert equivalent(found, f"{exact.numerator}/{exact.denominator}"), said
    assert not equivalent(found, f"{exact.numerator + exact.denominator}/{exact.denominator}")


TEXTS = st.text(max_size=120) | st.text(
    alphabet="0123456789 .,'-−+=*/x%$€{}()[]\\\n:#answeribox答案是Ответ万", max_size=120
)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.sampled_from(LANGUAGES))
def test_any_text_is_read(text, language):
    found = last_number(text, language)
    assert found is None or value(found) is not None
    answer = final_answer(text)
    assert answer is None or isinstance(undressed(answer), str)
    statements(without_markdown(text))


@pytest.mark.parametrize(
    "text",
    ["(" * 50_000, "The answer is " * 3000, "answer " * 8000, "1 " * 25_000, "1,000" * 10_000, "**" * 25_000,
     "答" * 50_000, "$" * 50_000, "\\boxed{" * 7000, "#### " * 10_000, "- " * 25_000, "{,}" * 16_000, "9" * 10_000_000,
     "<<" * 25_000, "the answer, " * 4000, "1万" * 20_000, "\n" * 50_000, "respuesta " * 5000,
     "<answer>" * 6000, "\\frac" * 10_000],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)  # fmt: skip
def test_no_text_takes_long(text):
    """The time of the work is bounded: a text twice as long as what is read gives what its end gives."""
    found = last_number(text)
    assert found == last_number(text[-MAX_TEXT:])
    assert final_answer(text) == final_answer(text[-MAX_TEXT:])
    assert found is None or re.fullmatch(r"-?[0-9./]+", found)
