"""`puna plan` as a person types it: answers, also for machines, launch files, pages, bad input in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from puna.cli.main import main
from puna.core.recipe import load
from puna.model.config import ModelConfig
from puna.plan.evidence.local_device import Calibration, device_here, write_calibration
from puna.plan.launch.emit import TARGETS
from puna.plan.output.format import span
from puna.train.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FLAT = {"NO_COLOR": "1", "COLUMNS": "250"}


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Output of a plan that works."""
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def tree(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The same as JSON."""
    return json.loads(plan(capsys, *words, "--json"))  # type: ignore[no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a plan that cannot be."""
    assert main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("puna plan: ")
    assert "Traceback" not in err
    return err


def test_llama_3_405b_as_its_paper_ran_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "llama3.1-405b", "--fleet", "16384xh100", "--tokens", "15.6T")
    for word in ("405b on 16,384 x h100-sxm", "15.6T tokens", "It fits", "MFU", "rent", "what if", "--stack puna"):
        assert word in text, word
    found = tree(capsys, "llama3.1-405b", "--fleet", "16384xh100", "--tokens", "15.6T")
    assert found["fits"]
    assert found["batch_sequences"] == 2048
    assert found["tokens"] == 15.6e12
    # The card says 30.84M hours of this fleet, other work on it included.
    assert 20e6 < found["accelerator_hours"]["value"] < 35e6
    assert 0.88 <= found["effective_time_share"]["value"] <= 0.95


def test_the_tree_keeps_its_keys_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    found = tree(capsys, "llama3-8b", "--fleet", "8xh100")
    intervals = (
        "step_seconds tokens_per_second mfu_causal_attention mfu_full_attention training_days days accelerator_hours "
        "interruptions effective_time_share energy_mwh rent_usd own_all_in_usd"
    )
    for key in intervals.split():
        assert set(found[key]) == {"low", "value", "high"}, key
        assert found[key]["low"] <= found[key]["value"] <= found[key]["high"], key
    plain = (
        "model parameters accelerator accelerators stack precision seq_len_tokens batch_sequences tokens_per_step "
        "tokens steps fits memory_available_bytes legal_layouts fitting_layouts best runners_up recipe_layout "
        "mfu_peak_tflops checkpoint_interval_seconds checkpoint_bytes mean_time_to_interruption_seconds spare_nodes "
        "facility_megawatts carbon_tonnes rent_usd_per_accelerator_hour capex_accelerators_usd capex_all_in_usd "
        "what_if remedies assumptions"
    )
    assert set(found) == {*intervals.split(), *plain.split()}
    best = found["best"]
    assert sum(best["step_parts_seconds"].values()) == pytest.approx(best["step_seconds"]["value"])
    assert sum(best["memory_parts_bytes"].values()) == pytest.approx(best["memory_bytes"])
    assert best["layout"]["sharding"] == "zero1"


def test_a_recipe_brings_its_batch_its_tokens_and_its_layout(capsys: pytest.CaptureFixture[str]) -> None:
    found = tree(capsys, str(RECIPES / "llama3-8b.toml"), "--fleet", "8xh200")
    assert (found["stack"], found["batch_sequences"], found["tokens"]) == ("puna", 512, pytest.approx(15e12, rel=1e-6))
    assert found["recipe_layout"]["layout"]["recompute"] == "ops"
    assert found["recipe_layout"]["layout"]["dp"] == 8
    changed = tree(capsys, str(RECIPES / "llama3-8b.toml"), "train.batch=64", "--fleet", "8xh200")
    assert changed["batch_sequences"] == 64


def test_a_model_directory_is_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = ModelConfig(preset="llama3.2-1b")
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()), encoding="utf-8")
    found = tree(capsys, str(tmp_path), "--fleet", "8xh100")
    assert found["parameters"] == config.num_parameters()
    assert found["seq_len_tokens"] == 8192


def test_without_a_fleet_it_is_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path))
    found = tree(capsys, str(RECIPES / "smoke.toml"))
    assert (found["accelerators"], found["stack"], found["rent_usd"]) == (1, "puna", None)
    assert any("puna plan calibrate" in line for line in found["assumptions"])
    assert any("no rent is known" in line for line in found["assumptions"])


def test_pinned_parts_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("llama3-70b", "--fleet", "64xh100", "--tp", "8", "--pp", "2", "--micro-batch", "1", "--recompute", "full")
    layout = tree(capsys, *words)["best"]["layout"]
    assert (layout["tp"], layout["pp"], layout["micro_batch"], layout["recompute"]) == (8, 2, 1, "full")


def test_prices_and_rates_can_be_overridden(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("llama3-8b", "--fleet", "8xh100", "--tokens", "100B")
    dear = tree(capsys, *words, "--price", "5", "prices.carbon_kg_per_kwh=0.4")
    assert dear["rent_usd_per_accelerator_hour"] == {"low": 5.0, "value": 5.0, "high": 5.0}
    assert dear["carbon_tonnes"] > 0
    frail = tree(capsys, *words, "reliability.failures_per_node_day=0.1")
    assert frail["interruptions"]["value"] > 10 * dear["interruptions"]["value"]


@pytest.mark.parametrize(("text", "sequences"), [("2048", 2048), ("16M", 1952), ("16.8M tokens", 2048)])
def test_a_batch_is_sequences_or_tokens(capsys: pytest.CaptureFixture[str], text: str, sequences: int) -> None:
    assert tree(capsys, "llama3-8b", "--fleet", "32xh100", "--batch", text)["batch_sequences"] == sequences


def test_a_million_tokens_and_more_need_no_unit(capsys: pytest.CaptureFixture[str]) -> None:
    assert tree(capsys, "llama3-8b", "--fleet", "8xh100", "--tokens", "15_000_000")["tokens"] == 15e6


def test_explain_and_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    text = plan(capsys, "llama3-8b", "--fleet", "8xh100", "--explain", "--html", str(page))
    assert "matrix products" in text
    assert "roofline" in text
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("target", TARGETS)
def test_launch_files_hold_a_recipe_that_the_trainer_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, target: str
) -> None:
    words = ("llama3-8b", "--fleet", "16xh100", "--stack", "puna", "--emit", target, "-o", str(tmp_path / "job"))
    assert main(["plan", *words]) == 0
    shown = capsys.readouterr()
    assert "Wrote" in shown.err
    assert "no corpus" in shown.err
    found = tree(capsys, *words[:5])
    recipe = load(Recipe, tmp_path / "job" / "recipe.toml").value
    layout = found["best"]["layout"]
    assert recipe.model.num_parameters() == found["parameters"]
    assert recipe.layout.data_parallel == layout["dp"] == 16
    assert (recipe.train.batch, recipe.train.seq_len) == (found["batch_sequences"], 8192)
    assert recipe.train.micro_batch == layout["micro_batch"]
    assert recipe.train.tokens == pytest.approx(found["tokens"])
    assert recipe.checkpoint.every > 0


def test_a_recipe_that_is_launched_keeps_what_the_plan_does_not_settle(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(RECIPES / "llama3-8b.toml"), "--fleet", "8xh200", "--emit", "slurm", "-o", str(tmp_path / "job")]
    assert main(["plan", *words]) == 0
    recipe = load(Recipe, tmp_path / "job" / "recipe.toml").value
    asked = load(Recipe, RECIPES / "llama3-8b.toml").value
    assert (recipe.optimizer, recipe.schedule, recipe.train.tokens) == (
        asked.optimizer,
        asked.schedule,
        asked.train.tokens,
    )
    assert main(["plan", *words[:3], "--tokens", "1T", *words[3:5], "-o", str(tmp_path / "shorter")]) == 0
    assert load(Recipe, tmp_path / "shorter" / "recipe.toml").value.train.tokens == 10**12


def test_a_plan_for_other_software_shows_its_own_next_to_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "llama3-8b", "--fleet", "8xh100"]
    assert main([*words, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert main([*words, "--stack", "puna", "--json"]) == 0
    own = json.loads(capsys.readouterr().out)
    assert (planned["stack"], own["stack"]) == ("megatron-core", "puna")
    words_of_own = f"puna train itself (--stack puna): {span(own['step_seconds']['value'])} a step"
    assert planned["assumptions"][-1].startswith(words_of_own)
    assert f"{own['days']['value']:.3g} days" in planned["assumptions"][-1]
    assert not any("puna train itself" in one for one in own["assumptions"])
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[1] == planned["assumptions"][-1]
    assert main(["plan", "llama3-70b", "--fleet", "8xh100"]) == 0
    assert "has no layout that fits 8 x h100-sxm" in capsys.readouterr().out


def test_a_budget_and_a_date(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("llama3-70b", "--budget-usd", "2e6", "--days", "30", "--price", "2.95")
    text = plan(capsys, *words)
    assert "$2,000,000 rent 936 x h100-sxm for 30 days at $2.95 an hour" in text
    assert "nearest to compute-optimal" in text
    found = tree(capsys, *words, "--tokens", "15T")
    assert found["rentable_accelerators"] == 936
    assert found["run"]["rent_usd"]["value"] <= 2e6
    assert found["goal"]["over_budget_usd"] > 0
    assert found["goal"]["needed_days"] <= 30


def test_a_fleet_from_its_file_and_from_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "fleet", str(ROOT / "fleets" / "meta-2024.toml"))
    assert "350,000 h100-sxm: $8.75-10.5 billion for the accelerators alone, $16.5-18.2 billion all-in." in text
    assert "520,326 by measured matrix products" in text
    found = tree(capsys, "fleet", "8xh200+64xa100", "prices.pue=1.5")
    assert found["count"] == 72
    assert [group["accelerator"] for group in found["groups"]] == ["h200", "a100-80g"]


def test_a_year_of_350_000_by_dice(capsys: pytest.CaptureFixture[str]) -> None:
    text = plan(capsys, "fleet", "350000xh100", "--days", "30")
    assert "30 days of 350,000 accelerators, simulated" in text
    assert "2 frontier on 65,536" in text
    found = tree(capsys, "fleet", "350000xh100", "--days", "30")["simulated"]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["failures"] == pytest.approx(166 * 30, rel=0.1)


def test_goodput_of_llama_3_and_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = tree(capsys, "goodput", "--gpus", "16384", "--days", "54")
    assert found["interruptions"] == pytest.approx(466, rel=0.15)
    assert 0.88 <= found["effective_time"] <= 0.95
    often = tree(capsys, "goodput", "--gpus", "16384", "--days", "54", "--rate", "6.5e-3", "--parameters", "405B")
    assert often["mtti_seconds"] == pytest.approx(1.8 * 3600, rel=0.05)  # arXiv 2410.21680, projected
    text = plan(capsys, "goodput", "--gpus", "350k", "--days", "365")
    assert "interrupted every 9 minutes: do not run it as one synchronous job" in text


def test_a_calibration_is_kept_and_used(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path))
    measured = Calibration(device=device_here("cpu"), date="2026-11-23", matmul_fp32_tflops=0.05, stream_gb_per_s=10.0)

    def measure(*, quick: bool) -> Calibration:
        assert quick
        write_calibration(measured)
        return measured

    monkeypatch.setattr("puna.train.measure.calibrate.calibrate", measure)
    text = plan(capsys, "calibrate", "--quick")
    assert "matmul_fp32_tflops" in text
    assert "0.05" in text
    found = tree(capsys, str(RECIPES / "smoke.toml"))
    assert any("as measured on 2026-11-23" in line for line in found["assumptions"])
    assert tree(capsys, "calibrate", "--quick")["date"] == "2026-11-23"


def test_rows_of_a_runs_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs.yaml"
    runs.write_text(json.dumps(RUNS), encoding="utf-8")
    rows = json.loads(plan(capsys, "predict", "--runs", str(runs), "--json"))
    assert [row["id"] for row in rows] == ["one"]
    assert rows[0]["step_s_low"] < rows[0]["step_s"] < rows[0]["step_s_high"]
    assert "one" in plan(capsys, "predict", "--runs", str(runs))
    page = tmp_path / "report.html"
    text = plan(capsys, "validate", "--runs", str(runs), "--html", str(page))
    assert "constant MFU" in text
    assert "Predicted and measured" in page.read_text(encoding="utf-8")
    judged = tree(capsys, "validate", "--runs", str(runs))
    assert judged["rows"][0]["measured_step_seconds"] == 10.0


RUNS: dict[str, Any] = {
    "models": {
        "tiny": {
            "layers": 32,
            "hidden": 4096,
            "heads": 32,
            "kv_heads": 8,
            "head_dim": 128,
            "ffn_hidden": 14336,
            "vocab": 128256,
            "gated_mlp": True,
        }
    },
    "throughput": [
        {
            "id": "one",
            "src": "here",
            "model": "tiny",
            "gpu": "h100-sxm",
            "gpus": 8,
            "seq": 8192,
            "precision": "bf16",
            "layout": {"tp": 1, "pp": 1, "cp": 2, "mbs": 1, "gbs": 128},
            "measured": {"step_s": 10.0},
        }
    ],
}


@pytest.mark.parametrize("field", ["gpus", "seq", "precision", "model", "layout"])
def test_a_runs_file_with_a_missing_field_names_row_and_field(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, field: str
) -> None:
    row = {key: value for key, value in RUNS["throughput"][0].items() if key != field}
    runs = tmp_path / "runs.yaml"
    runs.write_text(json.dumps({**RUNS, "throughput": [row]}), encoding="utf-8")
    sentence = refused(capsys, "predict", "--runs", str(runs))
    assert "row one" in sentence
    assert field in sentence


H100 = ("--fleet", "8xh100")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "No target was given. Try: puna plan llama3-8b"),
        (("lama3-8b", *H100), "'lama3-8b' is not a preset, recipe or model directory. Did you mean 'llama3-8b'?"),
        (("missing.toml", *H100), "missing.toml does not exist."),
        (("llama3-8b", "--fleet", "0xh100"), "a fleet needs at least one accelerator"),
        (("llama3-8b", "--fleet=-8xh100"), "'-8' accelerators is not a valid count"),
        (("llama3-8b", "--fleet", "8"), "'8' is not a fleet. Write it like 8xh100"),
        (("llama3-8b", "--fleet", "8xh100+8xa100"), "2 kinds of accelerators"),
        (("llama3-8b", *H100, "--tokens", "15.6"), "--tokens 15.6 has no unit. Did you mean 15.6T?"),
        (("llama3-8b", *H100, "--tokens", "500"), "--tokens 500 has no unit. Did you mean 500T?"),
        (("llama3-8b", *H100, "--tokens", "15.6Q"), "'15.6Q' is not a count. Write it like 500, 2.5M or 15.6T."),
        (("llama3-8b", *H100, "--tokens", "0B"), "--tokens 0B trains nothing"),
        (("llama3-8b", *H100, "--batch", "513", "--stack", "puna"), "share a batch of 513 sequences"),
        (
            ("llama3-8b", *H100, "--batch", "100", "--dp", "8"),
            "100 sequences is not divisible by dp 8. Make it 96 or 104",
        ),
        (("llama3-8b", *H100, "--batch", "4.2"), "--batch 4.2 has no unit. Did you mean 4.2M tokens?"),
        (("llama3-8b", *H100, "--batch", "0"), "--batch 0 is nothing to train on"),
        (("llama3-8b", *H100, "--batch", "5 bananas"), "neither sequences nor tokens"),
        (("llama3-8b", *H100, "--seq-len", "0"), "--seq-len 0 is less than one token"),
        (("llama3-8b", *H100, "--stack", "megatrn"), "Stack 'megatrn' is not known. Did you mean 'megatron-core'?"),
        (("llama3-8b", *H100, "--precision", "fp16"), "--precision fp16 is not known"),
        (("llama3-8b", *H100, "--precision", "nvfp4"), "h100-sxm has no products in nvfp4"),
        (("llama3-8b", *H100, "--tp", "3"), "tp 3 does not divide 8 accelerators"),
        (("llama3-8b", *H100, "--tp", "0"), "--tp 0 is not possible"),
        (("llama3-8b", *H100, "--sharding", "zero9"), "--sharding zero9 is not known. Did you mean 'zero"),
        (("llama3-8b", *H100, "--emit", "slrm", "-o", "x"), "'slrm' is not a launcher. Did you mean 'slurm'?"),
        (("llama3-8b", *H100, "--emit", "slurm"), "--emit needs a folder"),
        (("llama3-8b", *H100, "-o", "x"), "--emit was not given"),
        (("llama3-8b", *H100, "--price", "0"), "--price 0 is not a rent"),
        (("llama3-8b", *H100, "--rate", "1"), "--rate is not an option of puna plan TARGET"),
        (("llama3-8b", *H100, "train.batch=5"), "'train.batch=5' overrides a recipe, but llama3-8b is a preset"),
        (("llama3-8b", *H100, "prices.pue=0.5"), "prices.pue = 0.5"),
        (("llama3-8b", "--budget-usd", "1e6"), "A budget alone does not say"),
        (("llama3-8b", "--budget-usd", "1e6", "--days", "3", "--tp", "2"), "a pinned layout does not go with"),
        (("llama3-8b", "--budget-usd", "10", "--days", "30"), "rent no h100-sxm"),
        (("goodput", "--gpus", "0", "--days", "3"), "0 GPUs cannot train"),
        (("goodput", "--gpus", "8"), "--gpus and --days were not given"),
        (("goodput", "--gpus", "8", "--days", "3", "--rate", "-1"), "--rate -1 is not a failure rate"),
        (("goodput", "--gpus", "8", "--days", "3", "--tp", "4"), "--tp is not an option of puna plan goodput"),
        (("goodput", "more", "--gpus", "8", "--days", "3"), "'more' is not an argument of puna plan goodput"),
        (("fleet",), "No fleet was given."),
        (("fleet", "nothere.toml"), "nothere.toml does not exist"),
        (("fleet", "350000xh100", "--days", "0.5"), "--days 0.5 cannot be simulated"),
        (("fleet", "8xh100", "--days", "3"), "The jobs need"),
        (("fleet", "8xh100", "tp=3"), "'tp=3' is not an option of puna plan fleet"),
        (("fleet", "0xh100"), "a fleet needs at least one accelerator"),
        (("calibrate", "--days", "3"), "--days is not an option of puna plan calibrate"),
        (("llama3-8b", *H100, "--quick"), "--quick is not an option of puna plan TARGET"),
        (("predict",), "No runs were given."),
        (("predict", "--runs", "nothere.yaml"), "nothere.yaml does not exist"),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    sentence = refused(capsys, *words)
    assert message in sentence
    assert sentence.count("\n") == 1


def test_an_unknown_accelerator_comes_with_its_nearest_and_six_lines(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused(capsys, "llama3-8b", "--fleet", "8xh1000")
    assert "'h1000' is not in the catalogue of accelerators. Nearest: h100" in sentence
    lines = sentence.strip().splitlines()[1:]
    assert len(lines) == 6
    assert all("=" in line for line in lines)


def test_runs_to_judge_are_asked_for_where_there_are_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUNA_TEST_DATA", raising=False)
    assert "Give a file of published runs with --runs" in refused(capsys, "validate")


def test_a_plan_needs_no_torch(tmp_path: Path) -> None:
    """Neither for a preset nor for a recipe, a fleet or failures; what is imported is what makes an answer slow."""
    asked = [
        ["llama3-8b", "--fleet", "8xh100", "--explain", "--html", str(tmp_path / "plan.html")],
        [str(RECIPES / "llama3-8b.toml"), "--fleet", "8xh100", "--json"],
        ["goodput", "--gpus", "8", "--days", "3"],
        ["fleet", "8xh100"],
    ]
    code = (
        "import sys\nfrom puna.cli.main import main\n"
        f"assert all(main(['plan', *words]) == 0 for words in {asked!r})\n"
        "heavy = [name for name in ('torch', 'pandas', 'scipy', 'transformers') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **FLAT}
    )
    assert done.returncode == 0, done.stderr
    modules = _modules_of(["llama3-8b", "--fleet", "8xh100"]).split()
    assert [name for name in modules if name.startswith("puna.train.")] == [
        "puna.train.planning",
        "puna.train.planning.target",
    ]


def _modules_of(words: list[str]) -> str:
    code = f"import sys\nfrom puna.cli.main import main\nmain(['plan', *{words!r}])\nprint(*sys.modules)"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **FLAT}
    ).stdout.splitlines()[-1]


def test_published_mixtures_are_planned_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "qwen3-30b-a3b", "--fleet", "8xb200", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["best"]["layout"]["ep"] > 1
    assert main(["plan", "qwen3-30b-a3b", "--fleet", "8xb200", "--stack", "puna"]) == 2
    assert "no network for qwen3-30b-a3b" in capsys.readouterr().err


def test_a_mixture_cannot_be_launched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["plan", "mixtral-8x7b", "--fleet", "64xh100", "--emit", "torchrun", "-o", str(tmp_path / "job")]) == 2
    assert "nothing to launch" in capsys.readouterr().err
    assert not (tmp_path / "job").exists()
