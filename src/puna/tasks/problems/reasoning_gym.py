"""Tasks from the optional package reasoning-gym: its problems, Puna's checks.

Only generators that were read and found sound are allowed, as `gym.<name>`: the answer is unique, and problems do not
depend on the hash seed. The package's graders are never called. Several evaluate the model's answer as Python (any code
in it runs; `9**9**9**9` never ends), some give points to any text, some raise. Puna's checks compare exactly, after the
common answer parser. `REFUSED` says why other generators are not allowed.
"""

from functools import lru_cache, partial
from typing import Any

from puna.core.errors import PunaError, nearest
from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused

_EVALUATES = "its grader runs the answer as code"
_UNSTABLE = "its problems depend on the process' hash seed"
_RAISES = "its grader raises on some texts"
REFUSED = {
    **dict.fromkeys(("binary_matrix", "countdown", "intermediate_integration", "n_queens"), _EVALUATES),
    **dict.fromkeys(("polynomial_multiplication", "puzzle24", "simple_integration"), _EVALUATES),
    **dict.fromkeys(("spiral_matrix", "string_insertion"), _EVALUATES),
    **dict.fromkeys(("isomorphic_strings", "ransom_note", "word_ladder"), _UNSTABLE),
    **dict.fromkeys(("prime_factorization", "boxnet"), _RAISES),
    "game_of_life_halting": "its grader gives 1 to any text",
    "coin_flip": "a constant answer scores 0.95",
    "circuit_logic": "a constant answer scores 0.55",
    "polynomial_equations": "a constant answer scores 0.43",
    "propositional_logic": "nonsense scores 0.25, and it has no reference",
    "gcd": "a constant answer scores 0.83 at four numbers",
    "count_bits": "a constant answer scores a quarter and more at every size",
    "caesar_cipher": "short texts are few and come again",
    "maze": "it asks for a number of steps, not for a path; see planning.grid",
}
"""Generators that are known to be unsuitable, each with the reason (reasoning-gym 0.1.25, checked 2026-11)."""

_PAIRS = ((2, 20), (2, 100), (2, 1000), (3, 1000), (4, 10_000))


def _ranges(first: str, second: str, *bounds: tuple[int, int]) -> tuple[dict[str, int], ...]:
    """Configurations with a minimum and a maximum of one quantity."""
    return tuple({f"min_{first}": low, f"max_{second}": high} for low, high in bounds)


# The configuration of each generator at levels 1 to 5, and whether its answers are integers.
_ALLOWED: dict[str, tuple[bool, tuple[dict[str, int], ...]]] = {
    "chain_sum": (
        True,
        tuple(
            {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
            for terms, digits in ((2, 1), (2, 2), (3, 2), (4, 3), (6, 4))
        ),
    ),
    "products": (
        True,
        tuple(
            {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
            for terms, digits in ((2, 1), (2, 2), (3, 2), (2, 4), (3, 4))
        ),
    ),
    "lcm": (True, tuple({"min_numbers": n, "max_numbers": n, "max_value": most} for n, most in _PAIRS)),
    "count_primes": (True, _ranges("n", "n", (1, 30), (1, 100), (1, 500), (1, 2000), (1, 10_000))),
    "spell_backward": (False, _ranges("word_len", "word_len", (3, 3), (4, 4), (5, 6), (7, 8), (9, 10))),
    "base_conversion": (False, _ranges("value", "value", (2, 15), (16, 63), (64, 255), (256, 1000), (1000, 9999))),
}


def find(name: str) -> Task:
    """Return the task `gym.<generator>`. Raises PunaError for a refused or unknown one, or without the package."""
    generator = name.removeprefix("gym.")
    if generator in REFUSED:
        raise PunaError(f"reasoning-gym's {generator} is not allowed: {REFUSED[generator]}.", "See docs/tasks.md.")
    if generator not in _ALLOWED:
        raise PunaError(f"There is no task '{name}'.", nearest(name, (f"gym.{known}" for known in _ALLOWED)))
    whole, configurations = _ALLOWED[generator]
    return Task(
        f"gym.{generator}",
        "exactly the right answer 1",
        "Solve the problem. Write the result on a line that begins with the word answer and a colon.",
        tuple(", ".join(f"{key} {value}" for key, value in setting.items()) for setting in configurations),
        partial(_generate, generator, whole),
        grade,
        solve,
        ("answer: 0", "answer: 1", "answer: 2", "answer: 3", "answer: 10"),
    )


def _generate(generator: str, whole: bool, draw: Draw, level: int) -> tuple[str, Data]:
    item = _dataset(generator, level)[draw.randrange(2**31 - 1)]
    return str(item["question"]), {"answer": str(item["answer"]), "whole": whole}


@lru_cache(maxsize=64)
def _dataset(generator: str, level: int) -> Any:
    """The generator at a level. Its items are a function of their index."""
    try:
        from reasoning_gym import create_dataset
    except ImportError as error:
        raise PunaError(
            "Tasks named gym.* need the reasoning-gym package.", "Install it: pip install 'puna[reasoning-gym]'."
        ) from error
    return create_dataset(generator, seed=0, size=2**31 - 1, **_ALLOWED[generator][1][level - 1])


def grade(data: Data, text: str) -> Verdict:
    """Score 1 for exactly the reference answer, else 0."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    given: int | str | None = answer_parser.integer(found.text) if data["whole"] else found.text
    right: int | str = int(data["answer"]) if data["whole"] else data["answer"]
    if given is None or given != right:
        return refused("The answer is wrong.", correct=0.0)
    return Verdict(1.0, {"correct": 1.0}, "The answer is right.")


def solve(data: Data) -> str:
    """Return the reference answer."""
    return f"answer: {data['answer']}"
