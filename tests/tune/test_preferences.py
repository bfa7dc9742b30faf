"""Preferences: file formats, losses equal to TRL's, and stages that learn the preferences."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.model.store import load_model
from puna.text.tokenizer import Tokenizer
from puna.train.measure.machine import Machine
from puna.train.parallel import World
from puna.train.run.metrics import read_metrics
from puna.tune.preference import losses
from puna.tune.preference.dpo import DPO
from puna.tune.preference.pairs import judged_of, preference_of, read_judged, read_preferences
from puna.tune.preference.ranked import formatting, ranked_of
from puna.tune.preference.recipe import DPORecipe, RewardRecipe
from puna.tune.preference.reward import Judge, Reward, RewardHead
from puna.tune.rows.dialogues import Row
from puna.tune.rows.packing import collate, token_logprobs
from puna.tune.stage import prepare_stage, run_stage

GOLDEN = json.loads((Path(__file__).parent / "golden" / "preferences.json").read_text())
ASKED, GOOD, BAD = "How are you?", "Very well.", "Go away!"


# -- losses ------------------------------------------------------------------------------------------------------------


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log probabilities of tokens, their sums over answers, the reference's sums, lengths)."""
    tokens = torch.tensor(GOLDEN["logps"], requires_grad=True)
    return tokens, tokens.sum(1), torch.tensor(GOLDEN["reference"]).sum(1), torch.tensor(GOLDEN["lengths"])


def agree(name: str, loss: torch.Tensor, tokens: torch.Tensor) -> None:
    loss.backward()
    assert loss.item() == pytest.approx(GOLDEN[name]["loss"], abs=1e-6)
    assert torch.allclose(tokens.grad, torch.tensor(GOLDEN[name]["gradient"]), atol=1e-6)  # type: ignore[arg-type]


def test_dpo_and_its_nll_are_trls() -> None:
    tokens, logps, reference, _ = given()
    agree("dpo", losses.dpo(*logps.chunk(2), *reference.chunk(2), GOLDEN["dpo"]["beta"]).mean(), tokens)
    tokens, logps, reference, lengths = given()
    preference = losses.dpo(*logps.chunk(2), *reference.chunk(2), GOLDEN["dpo with nll"]["beta"]).mean()
    nll = -(tokens * torch.tensor(GOLDEN["mask"]))[:3].sum() / lengths[:3].sum()
    agree("dpo with nll", preference + 0.2 * nll, tokens)


def test_ipo_simpo_and_kto_are_trls() -> None:
    tokens, logps, reference, lengths = given()
    ipo = losses.ipo(*logps.chunk(2), *reference.chunk(2), *lengths.chunk(2), GOLDEN["ipo"]["beta"])
    agree("ipo", ipo.mean(), tokens)
    tokens, logps, reference, lengths = given()
    simpo = losses.simpo(*logps.chunk(2), *lengths.chunk(2), GOLDEN["simpo"]["beta"], GOLDEN["simpo"]["gamma"])
    agree("simpo", simpo.mean(), tokens)
    tokens, logps, reference, _ = given()
    case = GOLDEN["kto"]
    kl = torch.tensor(case["kl"])
    kto = losses.kto(logps, reference, torch.tensor(case["good"]), kl, case["beta"], tuple(case["weights"]))
    agree("kto", kto.mean(), tokens)


def test_the_reward_loss_is_trls() -> None:
    scores = torch.tensor(GOLDEN["reward"]["scores"], requires_grad=True)
    agree("reward", losses.bradley_terry(*scores.chunk(2)).mean(), scores)


# -- files -------------------------------------------------------------------------------------------------------------

SIDES = {"chosen": GOOD, "rejected": BAD}
USER = {"role": "user", "content": ASKED}
SHAPES = [
    {"prompt": ASKED, **SIDES},
    {"prompt": [USER], **SIDES, "source": "thumbs"},  # as exported by the assistant
    {
        "conversations": [{"from": "human", "value": ASKED}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    {"instruction": ASKED, "input": "", **SIDES},
    {
        "prompt": ASKED,
        "chosen": [USER, {"role": "assistant", "content": GOOD}],
        "rejected": [USER, {"role": "assistant", "content": BAD}],
    },
    {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}",
    },
    {"prompt": ASKED, "responses": [GOOD, BAD]},
]


@pytest.mark.parametrize("row", SHAPES)
def test_every_shape_is_a_prompt_and_ranked_answers(row: dict[str, Any]) -> None:
    preference = preference_of(Row("here", row))
    assert preference is not None
    assert [message["content"] for message in preference.prompt] == [ASKED]
    assert [answer[-1]["content"] for answer in preference.answers] == [GOOD, BAD]


def test_an_edited_answer_is_best_and_a_lone_thumb_is_no_pair() -> None:
    preference = preference_of(Row("here", {"prompt": ASKED, "edited": "Great!", **SIDES}))
    assert preference is not None
    assert [answer[0]["content"] for answer in preference.answers] == ["Great!", GOOD, BAD]
    row = Row("here", {"prompt": [USER], "chosen": None, "rejected": BAD})
    assert preference_of(row) is None
    (judged,) = judged_of(row)
    assert (judged.good, judged.answer[0]["content"]) == (False, BAD)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": ASKED, "chosen": GOOD, "rejected": f" {GOOD}\n"}, "line 1: two of its answers are equal"),
        ({"prompt": ASKED, "text": GOOD}, "line 1: the row has no chosen and rejected answer"),
        ({"prompt": ASKED, "chosen": "", "rejected": BAD}, "line 1: its answer is empty"),
        ({"prompt": ASKED, "responses": [GOOD]}, "line 1: its responses are not a ranking"),
        (SIDES, "line 1: its sides are not dialogues"),
        ({"prompt": ASKED, "chosen": [USER], "rejected": BAD}, "line 1: an answer does not begin and end"),
        ({"prompt": [{"role": "cat", "content": "Hi"}], **SIDES}, "line 1: message 1 has the role 'cat'"),
    ],
)
def test_a_bad_pair_is_named_with_its_line(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(PunaError) as error:
        read_preferences(path)
    assert sentence in str(error.value)


def test_real_preferences_are_read(test_data: Path) -> None:
    chat = test_data / "chat"
    assert len(read_preferences(chat / "dpo_en_demo.json.xz")) == 300
    assert len(read_preferences(chat / "hh_rlhf_harmless_test_1000.jsonl.xz")) == 1000
    judged = read_judged(chat / "kto_en_demo.json.xz")
    assert len(judged) == 300
    assert {entry.good for entry in judged} == {True, False}


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def values(model_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Pairs whose better answer is in lower case."""
    path = tmp_path / "pairs.jsonl"
    words = ["sun", "moon", "tree", "river", "stone", "cloud", "bird", "fish", "road", "house", "light", "rain", "snow"]
    said = [(word, f"{word} {other}") for word in [*words, "leaf", "sand", "wind"] for other in words[:3]]
    rows = [{"prompt": f"Write {word}.", "chosen": text, "rejected": text.upper()} for word, text in said]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "model": str(model_dir),
        "train": {"steps": 12, "batch": 8, "micro_batch": 4, "seq_len": 64, "precision": "fp32"},
        "optimizer": {"lr": 0.003},
        "log": {"every": 1},
        "data": {"files": [str(path)], "heldout": 0.3},
    }


def evals(run_dir: Path) -> list[dict[str, float]]:
    return [event["metrics"] for event in read_metrics(run_dir) if event["kind"] == "eval"]


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "kto"])
def test_preferences_are_learned(loss: str, values: dict[str, Any], tmp_path: Path, machine: Machine) -> None:
    values["dpo"] = {"loss": loss, "beta": 2.0 if loss == "simpo" else 0.1}
    event = run_stage(check(DPORecipe, values, "test"), tmp_path / "run", DPO, machine=machine)
    assert event["kind"] == "end"
    before, after = evals(tmp_path / "run")
    assert after["loss"] < before["loss"]
    assert after["accuracy"] > 0.9
    if loss == "dpo":  # no update yet: the policy is the reference
        assert before["loss"] == pytest.approx(0.693147, abs=1e-5)


def test_logprobs_of_answers_that_share_a_row_are_those_of_each_alone(
    values: dict[str, Any], tmp_path: Path, machine: Machine, tokenizer: Tokenizer, model_dir: Path
) -> None:
    stage = prepare_stage(
        check(DPORecipe, values, "test"), tmp_path / "run", World(0, 1, torch.device("cpu")), machine=machine
    )
    objective = DPO(stage)
    preference = read_preferences(Path(values["data"]["files"][0]))[0]
    ranked = ranked_of(preference.prompt, preference.answers, [], tokenizer, 64)
    assert ranked is not None
    (together,) = ranked.rows(64)
    apart = ranked.rows(len(ranked.prompt) + max(len(answer.ids) for answer in ranked.answers))
    assert len(apart) == 2
    model = load_model(model_dir)
    sums = []
    for rows in ([together], apart):
        laid = collate(rows)
        with torch.no_grad():
            tokens = model(
                laid.ids,
                positions=laid.positions,
                mask=laid.document_mask(),
                head=lambda h, w, laid=laid: token_logprobs(h, w, laid.source, laid.target)[0],
            )
        counted = objective._counted(laid)
        sums.append((laid.matrix(tokens) * counted).sum(1))
        # The end of the turn is formatting: it is learned, but does not count in the preference.
        assert (laid.mask.sum(1) - counted.sum(1)).tolist() == [1.0, 1.0]
    assert torch.allclose(sums[0], sums[1], atol=1e-5)


def test_form_is_headers_and_ends_but_not_markers(tokenizer: Tokenizer) -> None:
    form = {tokenizer.decode([id]) for id in formatting(tokenizer)}
    assert {"<|eot_id|>", "<|end_of_text|>", "<|start_header_id|>"} <= form
    assert not {"<think>", "<tool_call>"} & form


def test_a_reward_model_learns_ranks_and_transformers_reads_it(
    values: dict[str, Any], tmp_path: Path, machine: Machine, model_dir: Path
) -> None:
    from transformers import LlamaForSequenceClassification

    path = Path(values["data"]["files"][0])
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows[::2]:
        row["edited"] = row["chosen"].replace(" ", ", ")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values["train"]["steps"] = 20
    recipe = check(RewardRecipe, values, "test")
    run_stage(recipe, tmp_path / "run", Reward, factory=RewardHead, machine=machine)
    before, after = evals(tmp_path / "run")
    assert before["accuracy"] == pytest.approx(0.5)  # all answers are equal at first
    assert after["accuracy"] > 0.85
    judge = Judge(tmp_path / "run" / "model")
    messages = [{"role": "user", "content": "Write road."}]
    low, high = judge.scores(messages, [[{"role": "assistant", "content": text}] for text in ("ROAD SUN", "road sun")])
    assert high > low
    ranked = ranked_of(messages, [[{"role": "assistant", "content": "road sun"}]], [], judge.tokenizer, 64)
    assert ranked is not None
    theirs = LlamaForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    ids = torch.tensor([[*ranked.prompt, *ranked.answers[0].ids]])
    with torch.no_grad():
        assert theirs(input_ids=ids).logits.item() == pytest.approx(high, abs=1e-4)
    with pytest.raises(PunaError, match="does not contain a reward model"):
        Judge(model_dir)


def test_preferences_that_do_not_fit_are_an_error(values: dict[str, Any], tmp_path: Path, machine: Machine) -> None:
    values["train"]["seq_len"] = 8
    with pytest.raises(PunaError, match="None of the 48 preferences can be used"):
        run_stage(check(DPORecipe, values, "test"), tmp_path / "run", DPO, machine=machine)
