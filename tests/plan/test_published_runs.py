"""Published rows as jobs, their measurements in seconds, and one clear message for every mistake in a file."""

import copy
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import PRECISIONS
from puna.plan.equations.constants import STACKS
from puna.plan.equations.shape import Shape
from puna.plan.evidence.published_runs import PublishedRun, jobs_of, layouts_of, read_runs, stack_of

yaml = pytest.importorskip("yaml")

RUNS = Path(os.environ.get("PUNA_TEST_DATA", "")) / ".." / "planner-data" / "published_runs_dev.yaml"
needs_runs = pytest.mark.skipif(
    "PUNA_TEST_DATA" not in os.environ or not RUNS.exists(),
    reason="PUNA_TEST_DATA does not contain planner-data/published_runs_dev.yaml",
)

LLAMA_8B = {
    "layers": 32,
    "hidden": 4096,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 128,
    "ffn_hidden": 14336,
    "vocab": 128256,
    "gated_mlp": True,
}
GPT3 = {
    "layers": 96,
    "hidden": 12288,
    "heads": 96,
    "kv_heads": 96,
    "head_dim": 128,
    "ffn_hidden": 49152,
    "vocab": 51200,
    "gated_mlp": False,
    "tied_embeddings": True,
}
MODELS = {"llama3-8b": LLAMA_8B, "gpt3-175b": GPT3}
ROW: dict[str, Any] = {
    "id": "lab-7",
    "src": "lab",
    "model": "llama3-8b",
    "gpu": "h100-sxm",
    "gpus": 16,
    "seq": 8192,
    "layout": {"tp": 2, "cp": 1, "pp": 2, "vp": 2, "dp": 4, "mbs": 1, "gbs": 64, "sp": True, "sched": "interleaved"},
    "precision": "bf16",
    "recompute": "none",
    "measured": {"step_s": 3.0},
    "split": "dev",
}


def write(folder: Path, *rows: Any, models: Any = MODELS) -> Path:
    """A runs file."""
    path = folder / "runs.yaml"
    path.write_text(yaml.safe_dump({"models": models, "throughput": list(rows)}), encoding="utf-8")
    return path


def changed(**fields: Any) -> dict[str, Any]:
    """ROW with changed fields; those in `layout` are merged into its layout."""
    row = copy.deepcopy(ROW) | {key: value for key, value in fields.items() if key != "layout"}
    row["layout"] |= fields.get("layout", {})
    return row


def read(folder: Path, **fields: Any) -> PublishedRun:
    return read_runs(write(folder, changed(**fields)))[0]


# -- a row -------------------------------------------------------------------------------------------------------------


def test_a_row_is_read(tmp_path):
    row = read(tmp_path)
    assert (row.id, row.source, row.gpus, row.seq_len, row.batch) == ("lab-7", "lab", 16, 8192, 64)
    assert row.accelerator.name == "h100-sxm"
    assert row.shape == Shape(32, 4096, 32, 8, 128, 14336, 128256)
    assert row.family == ("lab", "llama3-8b", "bf16")
    assert (row.step_seconds, row.memory_gib, row.split) == (3.0, None, "dev")


def test_a_layout_that_is_printed_has_one_reading(tmp_path):
    (layout,) = layouts_of(read(tmp_path))
    assert (layout.tp, layout.cp, layout.pp, layout.vp, layout.dp, layout.micro_batch) == (2, 1, 2, 2, 4, 1)
    assert SHARDING[layout.sharding] == "zero1"
    assert RECOMPUTE[layout.recompute] == "none"
    assert layout.sequence_parallel


@pytest.mark.parametrize(
    ("printed", "meant"), [("full", "zero3"), ("zero2", "zero2"), ("hsdp", "hsdp"), ("megatron-fsdp", "zero3")]
)
def test_sharding_as_sources_call_it(tmp_path, printed, meant):
    (layout,) = layouts_of(read(tmp_path, layout={"fsdp": printed}))
    assert SHARDING[layout.sharding] == meant


@pytest.mark.parametrize(
    ("printed", "meant"),
    [("selective", "selective"), ("selective-op", "ops"), ("selective-block", "blocks"), ("full", "full")],
)
def test_recomputation_as_sources_call_it(tmp_path, printed, meant):
    assert read(tmp_path, recompute=printed).recompute == meant


def test_old_stacks_did_not_shard_nor_split_sequences(tmp_path):
    row = read(tmp_path, src="sc21", layout={"sp": None})
    (layout,) = layouts_of(row)
    assert SHARDING[layout.sharding] == "ddp"
    assert not layout.sequence_parallel


def test_half_precision_counts_as_bf16(tmp_path):
    row = read(tmp_path, precision="fp16")
    assert row.precision == "bf16"
    assert row.family[2] == "fp16"  # nevertheless a separate family


def test_what_is_not_printed_has_several_readings(tmp_path):
    row = read(tmp_path, src="llama3-paper", layout={"vp": None, "mbs": None}, recompute=None)
    layouts = layouts_of(row)
    assert {layout.vp for layout in layouts} == {1, 2, 4, 8, 16}  # divisors of 16 layers per stage
    assert {layout.micro_batch for layout in layouts} == {1, 2, 4, 8}  # 16 sequences per rank, two fill the pipeline
    assert [RECOMPUTE[layout.recompute] for layout in layouts[:2]] == ["none", "full"]
    assert all(layout.accelerators == 16 for layout in layouts)


def test_nothing_printed_at_all_tries_every_split(tmp_path):
    row = read_runs(write(tmp_path, changed() | {"layout": {"gbs": 64}}))[0]
    layouts = layouts_of(row)
    assert {(layout.tp, layout.pp) for layout in layouts} >= {(1, 1), (2, 2), (8, 2), (1, 16)}
    assert all(layout.accelerators == 16 for layout in layouts)


def test_jobs_know_their_rows_and_their_networks(tmp_path):
    rows = read_runs(write(tmp_path, changed(), changed(src="llama3-paper", recompute=None), changed(src="fms-fsdp")))
    jobs, index = jobs_of(rows)
    assert list(index) == [0, 1, 1, 2]
    assert list(jobs.device.pod) == [np.inf, 3072, 3072, np.inf]  # arXiv 2407.21783 section 3.3.1
    assert list(jobs.device.oversubscription) == [1, 7, 7, 1]
    assert list(jobs.device.nic_rate) == [50e9, 50e9, 50e9, 12.5e9]  # 800 Gbit/s per node in the fms-fsdp README
    assert list(jobs.micro_batches) == [16, 16, 16, 16]


@pytest.mark.parametrize(
    ("fields", "stack"),
    [
        ({"src": "sc21"}, "megatron-2021"),
        ({"src": "sc21-t2", "layout": {"fsdp": "zero3"}}, "deepspeed-zero3"),
        ({"src": "mbridge", "stack": "NeMo 25.09"}, "megatron-bridge-2025"),
        ({"src": "mbridge", "stack": "26.02"}, "megatron-bridge-26.02"),
        ({"src": "mbridge", "stack": "26.08"}, "megatron-bridge-26.06"),
        ({"src": "torchtitan", "compile": False}, "torchtitan-eager"),
        ({"src": "torchtitan", "tp_overlap": True}, "torchtitan-async"),
        ({"src": "dgxc-v25.02", "system": "maxtext"}, "maxtext"),
        ({"src": "somebody new"}, "megatron-core"),
    ],
)
def test_stack_of_a_row(fields, stack):
    assert stack_of(changed(**fields)) == stack


# -- measurements -----------------------------------------------------------------------------------------------------


def test_speeds_become_seconds_of_a_step(tmp_path):
    tokens = 64 * 8192
    assert read(tmp_path, measured={"tok_s_gpu": 1000}).step_seconds == pytest.approx(tokens / 16000)
    row = read(tmp_path, measured={"model_tflops_gpu": 400})
    flops = tokens * float(row.shape.flops_per_token(8192, causal=True))
    assert row.step_seconds == pytest.approx(flops / (16 * 400e12))
    whole_square = read(tmp_path, src="nemo-longseq", measured={"model_tflops_gpu": 400})
    assert whole_square.full_square
    assert whole_square.step_seconds > row.step_seconds
    share = read(tmp_path, measured={"mfu_pct": 40})
    assert share.step_seconds == pytest.approx(flops / (16 * 0.4 * 989e12))
    assert read(tmp_path, measured={"step_s": None, "tok_s_gpu": 1000}).step_seconds == pytest.approx(tokens / 16000)


@pytest.mark.parametrize("measured", [None, {}, {"mem_gib": 50.0}, {"hfu_pct": 60}])
def test_a_row_may_have_no_time(tmp_path, measured):
    row = read(tmp_path, measured=measured)
    assert row.step_seconds is None
    assert row.memory_gib == (measured or {}).get("mem_gib")


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "gpus", "batch", "tflops", "tokens", "days"),
    # arXiv 2104.04473 section 5.1 prints the days of equation 4, 8·T·P/(n·X): of GPT-3 and of a trillion parameters.
    [(96, 12288, 96, 1024, 1536, 140, 300e9, 34), (128, 25600, 160, 3072, 3072, 163, 450e9, 84)],
)
def test_hardware_flops_give_the_days_that_narayanan_prints(
    tmp_path, layers, hidden, heads, gpus, batch, tflops, tokens, days
):
    wide = GPT3 | {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": heads}
    wide |= {"head_dim": hidden // heads, "ffn_hidden": 4 * hidden}
    row = changed(src="sc21", model="wide", gpu="a100-80g", gpus=gpus, seq=2048, measured={"hw_tflops_gpu": tflops})
    row["layout"] |= {"gbs": batch, "tp": 8, "pp": 1, "vp": 1, "dp": gpus // 8}
    step = read_runs(write(tmp_path, row, models={"wide": wide}))[0].step_seconds
    assert step * tokens / (batch * 2048) / 86400 == pytest.approx(days, rel=0.035)  # equation 4 omits attention


# -- the development rows ----------------------------------------------------------------------------------------------


@needs_runs
def test_every_published_row_is_read_and_has_readings():
    rows = read_runs(RUNS)
    assert len(rows) == 584
    assert Counter(row.split for row in rows) == {"dev": 370, "extra": 214}
    assert len({row.family for row in rows if row.split == "dev"}) == 74
    assert all(row.step_seconds and 0.01 < row.step_seconds < 1000 for row in rows)
    assert {row.stack for row in rows} <= set(STACKS)
    jobs, index = jobs_of(rows)
    assert set(index) == set(range(len(rows)))
    assert np.all(np.diff(index) >= 0)
    assert np.all(jobs.micro_batches > 0)
    assert np.all(jobs.layout.accelerators <= np.array([row.gpus for row in rows])[index])


@needs_runs
def test_printed_utilisations_agree_with_printed_times():
    # If a source prints a time and TFLOP/s, both must agree in the convention assumed for it.
    off = []
    for row in read_runs(RUNS):
        measured = row.values["measured"]
        if "model_tflops_gpu" not in measured or not {"step_s", "tok_s_gpu"} & set(measured):
            continue
        if row.model == "gpt-oss-120b" or row.source == "llm-foundry":  # counted differently; fp8 peaks
            continue
        flops = float(row.shape.flops_per_token(row.seq_len, causal=not row.full_square)) * row.batch * row.seq_len
        off.append(flops / (row.step_seconds * row.gpus) / (measured["model_tflops_gpu"] * 1e12) - 1)
    assert len(off) > 100
    assert abs(np.median(off)) < 0.003
    assert np.quantile(np.abs(off), 0.9) < 0.03


# -- mistakes ----------------------------------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    """Reading fails with one message that contains all of `words`."""
    with pytest.raises(PunaError) as caught:
        read_runs(path)
    for word in words:
        assert word in str(caught.value), word


@pytest.mark.parametrize("field", ["src", "model", "gpu", "gpus", "seq", "layout", "precision"])
@pytest.mark.parametrize("how", ["gone", "null"])
def test_a_missing_field_is_named_with_its_row(tmp_path, field, how):
    row = {key: value for key, value in ROW.items() if key != field} | ({field: None} if how == "null" else {})
    refused(write(tmp_path, ROW, row), "row lab-7", field)


def test_a_row_without_a_name_is_counted(tmp_path):
    refused(write(tmp_path, ROW, {key: value for key, value in ROW.items() if key != "id"}), "row number 1", "id")
    refused(write(tmp_path, ROW, "llama on 16 GPUs"), "row number 1")


def test_a_missing_batch_is_named(tmp_path):
    refused(write(tmp_path, changed(layout={"gbs": None})), "row lab-7", "layout.gbs is missing")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpu": "h1000"}, ("'h1000'", "Nearest: h100")),
        ({"model": "llama3-8c"}, ("'llama3-8c'", "Did you mean 'llama3-8b'?")),
        ({"precision": "bf61"}, ("'bf61'", "Did you mean 'bf16'?")),
        ({"recompute": "fully"}, ("'fully'", "Did you mean 'full'?")),
        ({"gpus": 0}, ("gpus = 0", "positive whole number")),
        ({"gpus": 16.5}, ("gpus = 16.5",)),
        ({"seq": "8k"}, ("seq = '8k'",)),
        ({"layout": {"tp": 1.5}}, ("tp = 1.5",)),
        ({"layout": {"pp": -1}}, ("pp = -1",)),
        ({"layout": {"mbs": "two"}}, ("mbs = 'two'",)),
        ({"layout": {"gbs": True}}, ("gbs = True",)),
        ({"measured": {"step_s": 0}}, ("measured.step_s = 0",)),
        ({"measured": {"tok_s_gpu": "fast"}}, ("measured.tok_s_gpu = 'fast'",)),
        ({"measured": {"mfu_pct": math.nan}}, ("measured.mfu_pct",)),
        ({"measured": 3.0}, ("measured is not a mapping",)),
    ],
)
def test_what_is_wrong_is_named_with_its_row(tmp_path, fields, words):
    refused(write(tmp_path, changed(**fields)), "row lab-7", *words)


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"llama3-8b": {"layers": 32}}, ("models.llama3-8b", "hidden", "is missing")),
        ({"llama3-8b": LLAMA_8B | {"heads": "many"}}, ("models.llama3-8b", "heads = 'many'")),
        ({"llama3-8b": LLAMA_8B | {"layers": 0}}, ("layers = 0",)),
        ({"llama3-8b": LLAMA_8B | {"moe": {"experts": 8}}}, ("models.llama3-8b", "top_k", "moe_ffn")),
        ({"llama3-8b": LLAMA_8B | {"mla": "yes"}}, ("mla is not a mapping",)),
        ({"llama3-8b": 32}, ("models.llama3-8b is not a mapping",)),
        (["llama3-8b"], ("'models' is not a mapping",)),
        (None, ("'llama3-8b' is not in 'models'",)),
    ],
)
def test_a_wrong_shape_is_named(tmp_path, models, words):
    refused(write(tmp_path, ROW, models=models), *words)


@pytest.mark.parametrize("text", ["", "[]", "throughput: {}", "throughput: []", "models: {}"])
def test_a_file_without_rows(tmp_path, text):
    path = tmp_path / "runs.yaml"
    path.write_text(text, encoding="utf-8")
    refused(path, "runs.yaml", "'throughput'")


def test_a_file_that_is_none(tmp_path):
    refused(tmp_path / "none.yaml", "none.yaml does not exist")
    refused(tmp_path, "cannot be read")
    path = tmp_path / "runs.yaml"
    path.write_text("throughput: [", encoding="utf-8")
    refused(path, "cannot be read as YAML")
    path.write_bytes(b"\xff\xfe\x00")
    refused(path, "cannot be read as YAML")


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.sampled_from(["llama3-8b", "bf16", "fp8", "full", "h100", *PRECISIONS]),
)
fields = st.sampled_from([*ROW, *(("layout", key) for key in ROW["layout"]), ("measured", "step_s"), ("measured", "x")])


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(fields, anything), min_size=1, max_size=3))
def test_any_mistake_in_a_row_is_a_sentence_that_names_it(tmp_path, mistakes):
    row = copy.deepcopy(ROW)
    for field, value in mistakes:
        if isinstance(field, str):
            row[field] = value
        elif isinstance(row[field[0]], dict):
            row[field[0]][field[1]] = value
    said = f"row {row['id']}"
    try:
        (read_row,) = read_runs(write(tmp_path, row))
        assert layouts_of(read_row)
    except PunaError as error:
        said = str(error)
    assert f"row {row['id']}" in said or "row number 0" in said
