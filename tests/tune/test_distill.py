"""On-policy distillation: the student learns to write like its teacher, on its own answers."""

from functools import partial

import pytest
import torch

from puna.core.errors import PunaError
from puna.core.recipe import check
from puna.model.store import save_model
from puna.text.tokenizer import train_tokenizer
from puna.train.run.metrics import read_metrics
from puna.tune.rl.distill import Distill, reverse_kl, run
from puna.tune.rl.recipe import DistillRecipe
from puna.tune.stage import run_stage


@pytest.fixture
def teacher(tmp_path, config, tokenizer, random_model):
    wider = config.model_copy(update={"hidden_size": 48, "num_key_value_heads": 4})
    save_model(
        tmp_path / "teacher", wider, random_model(wider, 3).state_dict(), tokenizer, dtype=torch.float32, lineage={}
    )
    return tmp_path / "teacher"


@pytest.fixture
def recipe(model_dir, teacher):
    values = {
        "stage": "distill",
        "model": str(model_dir),
        "teacher": str(teacher),
        "tasks": [{"name": "planning.grid"}],
        "train": {"steps": 12, "batch": 4, "seq_len": 96, "precision": "fp32"},
        "rollout": {"samples": 3, "max_tokens": 8, "max_batch": 16},
        "optimizer": {"lr": 0.01},
        "log": {"every": 1, "eval_every": 0},
        "measure": {"problems": 2, "samples": 1},
    }
    return check(DistillRecipe, values, "test")


def test_reverse_kl_is_the_divergence_of_the_two_distributions():
    draw = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(7, 6, generator=draw), torch.randn(20, 6, generator=draw)
    other, other_head = torch.randn(7, 4, generator=draw), torch.randn(20, 4, generator=draw)
    student, teacher = (hidden @ head.T).log_softmax(-1), (other @ other_head.T).log_softmax(-1)
    expected = torch.nn.functional.kl_div(teacher, student, log_target=True, reduction="none").sum(-1)
    gradients = []
    for chunk in (0, 3):
        own = hidden.clone().requires_grad_()
        found = reverse_kl(own, head, other, other_head, chunk=chunk)
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)
    assert reverse_kl(hidden, head, hidden, head).abs().max() < 1e-5


def test_the_divergence_falls(recipe, tmp_path, machine):
    event = run(recipe, tmp_path / "run", machine=machine)
    assert event["kind"] == "end"
    train = [e for e in read_metrics(tmp_path / "run") if e["kind"] == "train"]
    found = [line["metrics"]["reverse_kl"] for line in train]
    assert found[-1] < 0.8 * found[0]


def test_a_teacher_with_another_tokenizer_is_refused(recipe, tmp_path, machine, config, random_model):
    other = train_tokenizer(["some other text, quite another one"] * 30, 320)
    small = config.model_copy(update={"vocab_size": other.vocab_size})
    save_model(tmp_path / "t", small, random_model(small).state_dict(), other, dtype=torch.float32, lineage={})
    for name, said in ((str(tmp_path / "t"), "a different tokenizer"), ("", "no teacher")):
        wrong = recipe.model_copy(update={"teacher": name})
        with pytest.raises(PunaError, match=said):
            run(wrong, tmp_path / f"run-{bool(name)}", machine=machine)


def test_its_state_is_the_queue_and_the_curricula(recipe, tmp_path, machine):
    """Two updates on one set; the rest after the first is stored in the checkpoint."""
    seen = []

    class Looked(Distill):
        def batch(self, data_step):
            batches = super().batch(data_step)
            if data_step == 0:
                state = self.state()
                self.restore(state)
                seen.append(state)
            return batches

    two = recipe.model_copy(update={"rollout": recipe.rollout.model_copy(update={"updates": 2})})
    two = two.model_copy(update={"train": two.train.model_copy(update={"steps": 2})})
    run_stage(two, tmp_path / "run", partial(Looked, recipe=two), machine=machine)
    (queued,) = seen[0]["queue"]
    assert len(queued["groups"]) == 4
