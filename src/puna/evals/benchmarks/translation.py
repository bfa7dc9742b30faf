"""Translation: NTREX-128 from and into English, scored with chrF."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData
from puna.evals.scoring import chrf

LANGUAGES = {"deu": "German", "fra": "French", "spa": "Spanish", "zho-CN": "Chinese"}
SHOTS = 4


def _lines(data: EvalData, name: str) -> list[str]:
    return data.text(f"translation/ntrex/newstest2019-{name}.txt").replace("\r\n", "\n").rstrip("\n").split("\n")


def _load(data: EvalData) -> list[Item]:
    english = _lines(data, "src.eng")
    # Examples are not scored. They are short, so that they fit small contexts.
    order = sorted(range(len(english)), key=lambda n: hashlib.sha256(f"ntrex/{n}".encode()).digest())
    shots = [n for n in order if 20 < len(english[n]) < 120][:SHOTS]
    items = []
    for code, language in LANGUAGES.items():
        foreign = _lines(data, f"ref.{code}")
        pairs = ((english, foreign, "English", language), (foreign, english, language, "English"))
        for source, target, from_name, to_name in pairs:
            before = "".join(f"{from_name}: {source[n]}\n{to_name}: {target[n]}\n\n" for n in shots)
            group = f"{from_name} to {to_name}"
            for n, (text, right) in enumerate(zip(source, target, strict=True)):
                if n in shots:
                    continue
                asked = f"Translate into {to_name}. Give the translation alone.\n\n{text}"
                ask = Text(
                    f"{before}{from_name}: {text}\n{to_name}:", ("\n",), 160, ({"role": "user", "content": asked},)
                )
                items.append(Item(f"{group} {n}", ask, right, group, text, f" {right}"))
    return items


def translated(item: Item, response: str) -> Score:
    """Score the chrF of the first paragraph."""
    found = response.strip().split("\n\n")[0][:4000]
    value = chrf.score(chrf.counts(found, item.target))
    return Score(value, found, "" if value >= 0.999 else f"chrF {100 * value:.0f}")


def corpus(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the corpus chrF of each direction and their mean, with an interval over sentences."""
    groups: dict[str, list[chrf.Counts]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(chrf.counts(row["answer"], row["target"].strip()))
    found = {name: chrf.corpus_score(part) for name, part in sorted(groups.items())}
    intervals = {name: chrf.corpus_interval(part) for name, part in sorted(groups.items())}
    return {"metric": "corpus chrF", "value": sum(found.values()) / max(1, len(found)), "groups": found,
            "intervals": {name: list(pair) for name, pair in intervals.items()}}  # fmt: skip


BENCHMARKS = (
    Benchmark("ntrex", "NTREX-128", ("translation",), _load, translated,
              "4-shot, 'English: …\\nGerman: …'; German, French, Spanish and Chinese, both ways; "
              "chat: asked for the translation alone",
              "mean sentence chrF; corpus chrF as well",
              "Federmann et al. 2022 (aclanthology.org/2022.sumeval-1.4), CC-BY-SA-4.0", corpus_metric=corpus),
)  # fmt: skip
