"""Launch files: their exact text (golden/), validity under platforms' schemas, and that they run."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.core.recipe import load
from puna.model.layout import Layout, LayoutConfig
from puna.plan.equations.hardware import Accelerator, find_accelerator
from puna.plan.launch import ray_nodes
from puna.plan.launch.emit import TARGETS, emit
from puna.plan.launch.job import Launch
from puna.train.recipe import Recipe
from puna.train.run.directory import resolve_corpus

RECIPES = Path(__file__).parents[2] / "recipes"
GOLDEN = Path(__file__).parent / "golden"

CPU = Accelerator(
    name="cpu",
    generation="cpu",
    bf16_tflops=0.1,
    memory_gb=8,
    memory_gb_per_s=20,
    link_gb_per_s=5,
    link_domain=1,
    node_size=1,
    nic_gbit_per_s=10,
    watts=100,
)

LAYOUT = Layout(dp_replicate=2, dp_shard=32, recompute="full")
FILES = {
    "torchrun": ["launch.sh"],
    "slurm": ["job.sbatch"],
    "kubeflow": ["trainjob.yaml", "pytorchjob.yaml"],
    "skypilot": ["job.yaml"],
    "ray": ["rayjob.yaml"],
}


def job(**changes: Any) -> Launch:
    """Llama 3 70B on 8 nodes of 8 H100."""
    values: dict[str, Any] = {
        "name": "llama3-70b",
        "recipe": (RECIPES / "llama3-70b.toml").read_text(),
        "layout": LAYOUT,
        "accelerator": find_accelerator("h100"),
        "nodes": 8,
        "accelerators_per_node": 8,
        "image": "registry.example/puna:1",
        "wall_seconds": 2 * 86400,
        "expected_step_seconds": 97.3,
        "expected_tokens_per_second": 86_200,
        "notes": ("80 % interval of a step: 91 to 104 s.",),
    }
    return Launch(**(values | changes))


def small(name: str, **changes: Any) -> Launch:
    """The smoke recipe with two processes on this machine."""
    values: dict[str, Any] = {
        "name": name,
        "recipe": (RECIPES / "smoke.toml").read_text(),
        "layout": Layout(dp_replicate=2, micro_batch=4),
        "accelerator": CPU,
        "nodes": 1,
        "accelerators_per_node": 2,
    }
    return Launch(**(values | changes))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- contents ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_files_are_the_golden_ones(target: str) -> None:
    """After an intended change: PUNA_WRITE_GOLDEN=1 pytest tests/plan/test_launch.py, then read the diff."""
    storage = "/mnt/llama" if target == "slurm" else "."
    result = emit(target, job(storage_dir=storage), Path("job"))
    assert [path.name for path in result.files] == ["recipe.toml", "worker.sh", *FILES[target]]
    for path in result.files:
        golden = GOLDEN / target / path.name
        if os.environ.get("PUNA_WRITE_GOLDEN"):
            golden.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, golden)
        assert path.read_text() == golden.read_text(), path.name


def test_the_recipe_is_one_that_train_takes_with_the_layout_of_the_plan() -> None:
    result = emit(
        "torchrun", job(layout=LAYOUT.model_copy(update={"micro_batch": 2}), checkpoint_every=250), Path("job")
    )
    recipe = load(Recipe, result.files[0]).value
    before = load(Recipe, RECIPES / "llama3-70b.toml").value
    assert recipe.layout == LayoutConfig(dp_replicate=2, dp_shard=32)
    assert (recipe.train.micro_batch, recipe.checkpoint.every) == (2, 250)
    assert recipe.train.model_copy(update={"micro_batch": 1}) == before.train
    assert (recipe.model, recipe.optimizer, recipe.schedule, recipe.corpus) == (
        before.model,
        before.optimizer,
        before.schedule,
        before.corpus,
    )


def test_a_rack_of_gb200_is_hosts_of_four() -> None:
    rack = {"accelerator": find_accelerator("gb200"), "layout": Layout(dp_shard=72), "recipe": "train.steps = 1"}
    emit("slurm", job(**rack, nodes=18, accelerators_per_node=4), Path("job"))
    text = Path("job/job.sbatch").read_text()
    assert "--nodes=18" in text
    assert "--gpus-per-node=4" in text
    with pytest.raises(PunaError, match=r"a host of gb200 has 4\. Use 18 nodes of 4"):
        emit("slurm", job(**rack, nodes=9, accelerators_per_node=8), Path("other"))


def test_amd_and_cpus_ask_kubernetes_for_what_they_are() -> None:
    emit("kubeflow", job(accelerator=find_accelerator("mi300x")), Path("amd"))
    emit("kubeflow", small("small"), Path("cpu"))
    asked = [
        list(yaml.safe_load_all(Path(f"{where}/trainjob.yaml").read_text()))[1]["spec"]["trainer"]["resourcesPerNode"]
        for where in ("amd", "cpu")
    ]
    assert asked == [{"limits": {"amd.com/gpu": 8}}, {"requests": {"cpu": "2"}}]


def test_one_node_needs_no_meeting_place() -> None:
    emit("torchrun", small("small"), Path("job"))
    assert "--standalone" in Path("job/launch.sh").read_text()
    assert "HEAD" not in Path("job/launch.sh").read_text()
    emit("kubeflow", small("small"), Path("pods"))
    assert list(yaml.safe_load(Path("pods/pytorchjob.yaml").read_text())["spec"]["pytorchReplicaSpecs"]) == ["Master"]


# -- warnings ----------------------------------------------------------------------------------------------------------


def test_a_layout_with_split_matrices_and_stages_is_written_as_train_reads_it() -> None:
    layout = Layout(tp=8, pp=2, dp_shard=4, sequence_parallel=True)
    assert not emit("slurm", job(layout=layout), Path("job")).warnings
    written = load(Recipe, Path("job/recipe.toml")).value
    assert written.resolve_layout(64).model_dump(exclude={"micro_batch"}) == layout.model_dump(exclude={"micro_batch"})


@pytest.mark.parametrize(
    ("target", "changes", "warning"),
    [
        ("slurm", {"recipe": "train.steps = 9\ncheckpoint.every = 3"}, "names no corpus"),
        ("slurm", {"recipe": "corpus = 'corpora/web'\ntrain.steps = 9"}, "a restart starts over"),
        ("kubeflow", {"image": ""}, r"build 'puna:\d.* with puna in it"),
        ("skypilot", {"accelerator": find_accelerator("mi355x")}, "job.yaml says MI355X"),
        ("torchrun", {"wall_seconds": 86400}, "1 d 0 h is not enforced"),
        ("ray", {"recipe": "corpus = '/data/web'\ntrain.steps = 9\ncheckpoint.every = 3"}, "outside of /storage"),
    ],
)
def test_what_is_missing_is_said_once(target: str, changes: dict[str, Any], warning: str) -> None:
    result = emit(target, job(**({"wall_seconds": 0} | changes)), Path("job"))
    assert len(result.warnings) == 1
    assert re.search(warning, result.warnings[0])


def test_a_corpus_to_be_built_is_built_before_and_named_by_its_folder() -> None:
    result = emit("torchrun", small("small"), Path("job"))
    build = "puna data build recipes/data/smoke.toml -o corpora/smoke"
    assert [warning.endswith(build) for warning in result.warnings] == [True]
    assert load(Recipe, Path("job/recipe.toml")).value.corpus == "corpora/smoke"


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "changes", "sentence"),
    [
        ("slrum", {}, "'slrum' is not a launcher. Did you mean 'slurm'?"),
        ("slurm", {"nodes": 4}, "dp_replicate 2 x dp_shard 32 x tp 1 x cp 1 x pp 1 does not fill 4 nodes of 8 acc"),
        ("slurm", {"layout": Layout(dp_replicate=3, dp_shard=32)}, "Its product must be 64"),
        ("kubeflow", {"name": "llama3.1-405b"}, "a DNS label of at most 54 .* Try 'llama3-1-405b'"),
        ("ray", {"name": "a" * 48}, "at most 47 characters"),
        ("ray", {"name": "70b"}, "Try 'job-70b'"),
        ("slurm", {"name": "my run"}, "cannot name a job. Use letters, .* such as 'my-run'"),
        ("slurm", {"storage_dir": "data"}, "'data' is not an absolute path"),
        ("slurm", {"recipe": "train = ["}, "The recipe is not valid TOML"),
        ("slurm", {"recipe": "train = 3"}, "'train' is a value, not a section"),
        ("slurm", {"recipe": "train.batch = 100"}, "100 rows cannot be divided evenly among 64"),
        (
            "slurm",
            {"recipe": "train.batch = 640", "layout": Layout(dp_shard=64, micro_batch=3)},
            "3 does not divide the 10 rows",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(target: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PunaError, match=sentence) as caught:
        emit(target, job(**changes), Path("job"))
    assert "\n" not in str(caught.value)
    assert not Path("job").exists()


def test_files_in_the_way_stay_as_they_are() -> None:
    emit("torchrun", small("small"), Path("job"))
    emit("torchrun", small("small"), Path("job"))  # writing the same again changes nothing
    emit("slurm", small("small"), Path("job"))  # shares recipe.toml and worker.sh
    assert sorted(path.name for path in Path("job").iterdir()) == [
        "job.sbatch",
        "launch.sh",
        "recipe.toml",
        "worker.sh",
    ]
    Path("job/launch.sh").write_text("mine\n")
    with pytest.raises(PunaError, match=r"job/launch\.sh already exists with different content"):
        emit("torchrun", small("small"), Path("job"))
    assert Path("job/launch.sh").read_text() == "mine\n"
    Path("file").touch()
    with pytest.raises(PunaError, match="is a file, not a folder"):
        emit("torchrun", small("small"), Path("file"))


# -- shells ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    folder=st.text(st.characters(exclude_characters="\0/", exclude_categories=["C"]), min_size=1, max_size=12),
    nodes=st.integers(1, 999),
    per_node=st.integers(1, 8),
    target=st.sampled_from(TARGETS),
)
def test_any_folder_and_size_make_files_that_parse(folder: str, nodes: int, per_node: int, target: str) -> None:
    if folder in (".", ".."):
        return
    place = f"/mnt/{folder}"
    shape = {"nodes": nodes, "accelerators_per_node": per_node, "recipe": "train.steps = 1"}
    shape["layout"] = Layout(dp_shard=nodes * per_node)
    shutil.rmtree("parse", ignore_errors=True)
    result = emit(target, job(**shape, storage_dir=place), Path("parse", folder))
    assert load(Recipe, result.files[0]).value.layout.dp_shard == nodes * per_node
    for path in result.files[1:]:
        if path.suffix == ".yaml":
            said = [text for one in yaml.safe_load_all(path.read_text()) for text in _strings(one)]
            assert any(place in text or shlex.quote(place) in text for text in said)
        else:
            assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""


def _strings(value: object) -> list[str]:
    """All strings in parsed YAML."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def stub(name: str, body: str) -> None:
    """A program of that name, first on the PATH of `run`, which also writes its arguments to `calls`."""
    Path("bin").mkdir(exist_ok=True)
    Path("bin", name).write_text(f'#!/bin/bash\necho {name} "$@" >>"$CALLS"\n{body}\n')
    Path("bin", name).chmod(0o755)


def run(script: str, **environment: str) -> tuple[int, list[str], str]:
    """Exit code, the calls of the stubs, and stderr."""
    calls = Path("calls")
    calls.unlink(missing_ok=True)
    path = f"{Path('bin').resolve()}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CALLS": str(calls.resolve())} | environment
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, calls.read_text().splitlines() if calls.exists() else [], done.stderr


def test_a_worker_begins_a_run_or_goes_on_with_it() -> None:
    emit("torchrun", small("small"), Path("job"))
    stub("python", "")
    _, calls, _ = run("job/worker.sh")
    assert calls == [f"python -m puna train {Path('job').resolve()}/recipe.toml --run-dir runs/small"]
    Path("runs/small").mkdir(parents=True)
    Path("runs/small/recipe.toml").touch()
    _, calls, _ = run("job/worker.sh")
    assert calls == [
        "python -m puna train --resume runs/small "
        "layout.dp_replicate=2 layout.dp_shard=1 layout.tp=1 layout.cp=1 layout.pp=1 train.micro_batch=4"
    ]


def test_several_nodes_must_know_where_to_meet() -> None:
    emit("torchrun", job(), Path("job"))
    stub("torchrun", "")
    code, calls, error = run("job/launch.sh")
    assert (code != 0, calls) == (True, [])
    assert "Set HEAD to the host name of one node" in error
    code, calls, _ = run("job/launch.sh", HEAD="gpu-01")
    assert code == 0
    assert "--nnodes 8 --nproc-per-node 8" in calls[0]
    assert "--rdzv-endpoint gpu-01:29500" in calls[0]


SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu-[01-08]", "SLURM_CPUS_ON_NODE": "96"}


def slurm_job(srun: str, **changes: Any) -> None:
    emit("slurm", job(**changes), Path("job"))
    stub("scontrol", '[ "$1" = show ] && printf "gpu-01\\ngpu-02\\n"; true')
    stub("scancel", 'kill "$(cat srun.pid)"')
    stub("srun", srun)


def test_slurm_starts_one_torchrun_a_node_and_ends_with_it() -> None:
    slurm_job("exit 0", image="")
    code, calls, _ = run("job/job.sbatch", **SLURM)
    assert code == 0
    assert [call for call in calls if not call.startswith("scontrol show")] == [
        "srun --ntasks-per-node=1 --cpus-per-task=96 --kill-on-bad-exit=1 torchrun --nnodes 8 --nproc-per-node 8 "
        "--rdzv-backend c10d --rdzv-id 7-0 --rdzv-endpoint gpu-01:29500 "
        f"--no-python bash {Path('job').resolve()}/worker.sh"
    ]


def test_slurm_queues_again_after_failures_until_it_is_enough() -> None:
    slurm_job("exit 5", max_restarts=2)
    ends = [run("job/job.sbatch", **SLURM) for _ in range(3)]
    assert ["scontrol requeue 7" in calls for _, calls, _ in ends] == [True, True, False]
    assert [code for code, _, _ in ends] == [0, 0, 5]
    assert "Failed 3 times" in ends[2][2]


def test_slurm_stops_the_step_before_the_wall_time_and_queues_again() -> None:
    stopped = "trap 'kill $!; exit 1' TERM"
    slurm_job(f"echo $$ >srun.pid; sleep 60 & {stopped}; kill -USR1 $PPID; wait; touch slept", max_restarts=0)
    code, calls, _ = run("job/job.sbatch", **SLURM)
    assert (code, calls[-2:]) == (0, ["scancel --signal=TERM 7", "scontrol requeue 7"])
    assert not Path("slept").exists()
    assert not Path("job/failures-7").exists()


def test_slurm_says_so_when_it_cannot_find_its_folder() -> None:
    emit("slurm", job(), Path("job"))
    shutil.copy("job/job.sbatch", "elsewhere.sbatch")
    Path("job").rename("moved")
    code, _, error = run("elsewhere.sbatch", **SLURM)
    assert (code, "set JOB_DIR to its folder" in error) == (2, True)


def test_the_ray_entrypoint_starts_torchrun_on_each_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    emit("ray", job(), Path("job"))
    spec = yaml.safe_load(Path("job/rayjob.yaml").read_text())["spec"]
    words = spec["entrypoint"].split()
    assert words[:3] == ["python", "-m", "puna.plan.launch.ray_nodes"]

    def fail(**arguments: Any) -> None:
        assert arguments == {
            "nodes": 8,
            "per_node": 8,
            "resource": "GPU",
            "directory": "/storage",
            "worker": "/job/worker.sh",
        }
        raise PunaError("torchrun on node 3 of 8 ended with 1.")

    monkeypatch.setattr(ray_nodes, "run_on_nodes", fail)
    with pytest.raises(SystemExit, match="node 3 of 8"):
        ray_nodes.main(words[3:])
    command = ray_nodes.torchrun_command(nodes=8, per_node=8, rank=3, address="10.0.0.1", worker="/job/worker.sh")
    assert command[:7] == ["torchrun", "--nnodes", "8", "--nproc-per-node", "8", "--node-rank", "3"]


@pytest.mark.slow
def test_ray_runs_every_node_and_ends_with_the_first_that_fails() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[default]'")
    from ray.cluster_utils import Cluster

    Path("good.sh").write_text('echo "$WORLD_SIZE" >"rank-$RANK"\n')
    Path("bad.sh").write_text('exit "$RANK"\n')
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        for script, code in (("good.sh", 0), ("bad.sh", 1)):
            words = ["--nodes", "2", "--per-node", "1", "--resource", "CPU", "--directory", str(Path.cwd()), script]
            command = [sys.executable, "-m", "puna.plan.launch.ray_nodes", *words]
            done = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": cluster.address}, timeout=300)
            assert done.returncode == code
    finally:
        cluster.shutdown()
    assert [Path(f"rank-{rank}").read_text() for rank in range(2)] == ["2\n", "2\n"]


@pytest.mark.slow
@pytest.mark.skipif(
    "PUNA_TEST_RESTARTS" not in os.environ,
    reason="gloo (torch 2.13) often misses its peers when torchrun restarts killed processes, and waits until it "
    "gives up; set PUNA_TEST_RESTARTS=1 and have some minutes",
)
def test_the_emitted_script_trains_and_survives_the_loss_of_a_process(tmp_path: Path) -> None:
    shutil.copytree(RECIPES, "recipes")
    resolve_corpus(load(Recipe, RECIPES / "smoke.toml").value, Path("corpora"))
    emit("torchrun", small("small", checkpoint_every=5, max_restarts=2), Path("job"))
    text = Path("job/recipe.toml").read_text().replace("steps = 30", "steps = 300")
    Path("job/recipe.toml").write_text(text)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    agent = subprocess.Popen(["bash", "job/launch.sh"], env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"})
    try:
        for _ in range(1200):
            if list(Path("runs/small/checkpoints").glob("step-*")):
                break
            assert agent.poll() is None
            time.sleep(0.1)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        if not children.exists():
            pytest.skip("needs Linux: /proc says which processes torchrun started")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        assert agent.wait(420) == 0
    finally:
        agent.kill()
    starts = re.findall(r'"kind": "start", "step": (\d+)', Path("runs/small/metrics.jsonl").read_text())
    assert len(starts) == 2
    assert int(starts[1]) > 0
    assert Path("runs/small/model/config.json").exists()


# -- schemas ---------------------------------------------------------------------------------------------------------
# Field names and types of the published definitions, as far as these files use them; other fields are errors.
# TrainJob, TrainingRuntime: kubeflow/trainer v2.3.0, manifests/base/crds. PyTorchJob: v1.9.3 of the same repository.
# RayJob: ray-project/kuberay v1.7.0, helm-chart/kuberay-operator/crds. SkyPilot: 0.14.1, sky/utils/schemas.py.

TEXT, COUNT, YES_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS, LABELS = {"type": "array", "items": TEXT}, {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", **properties: Any) -> dict[str, Any]:
    names = required.split()
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def several(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


QUANTITIES = {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}
METADATA = fields(name={**TEXT, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}, labels=LABELS)
ENVIRONMENT = several(fields("name", name=TEXT, value=TEXT))
RESOURCES = fields(limits=QUANTITIES, requests=QUANTITIES)
CONTAINER = fields(
    "name",
    name=TEXT,
    image=TEXT,
    command=TEXTS,
    env=ENVIRONMENT,
    resources=RESOURCES,
    workingDir=TEXT,
    volumeMounts=several(fields("name mountPath", name=TEXT, mountPath=TEXT, readOnly=YES_NO)),
)
VOLUME = fields(
    "name",
    name=TEXT,
    configMap=fields(name=TEXT),
    persistentVolumeClaim=fields("claimName", claimName=TEXT),
    emptyDir=fields(medium=TEXT),
)
POD = fields(
    "containers",
    containers=several(CONTAINER),
    volumes=several(VOLUME),
    restartPolicy={"enum": ["Never", "OnFailure", "Always"]},
    terminationGracePeriodSeconds=COUNT,
)
POD_TEMPLATE = fields(metadata=METADATA, spec=POD)


def resource(group: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    head = {"apiVersion": {"const": group}, "kind": {"const": kind}}
    return fields("apiVersion kind metadata spec", **head, metadata=METADATA, spec=spec)


JOB_TEMPLATE = fields(metadata=METADATA, spec=fields("template", backoffLimit=COUNT, template=POD_TEMPLATE))
JOB_SET = fields(
    failurePolicy=fields(maxRestarts=COUNT),
    replicatedJobs=several(fields("name template", name=TEXT, template=JOB_TEMPLATE)),
)
REPLICA = fields(
    replicas=COUNT,
    restartPolicy={"enum": ["Always", "OnFailure", "Never", "ExitCode"]},
    template=POD_TEMPLATE,
)
HEAD_GROUP = fields("template", rayStartParams=LABELS, template=POD_TEMPLATE)
WORKER_GROUP = fields(
    "groupName minReplicas maxReplicas template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=LABELS,
    template=POD_TEMPLATE,
)
SCHEMAS = {
    "TrainingRuntime": resource(
        "trainer.kubeflow.org/v1alpha1",
        "TrainingRuntime",
        fields(mlPolicy=fields(numNodes=COUNT, torch=fields()), template=fields(spec=JOB_SET)),
    ),
    "TrainJob": resource(
        "trainer.kubeflow.org/v1alpha1",
        "TrainJob",
        fields(
            "runtimeRef",
            runtimeRef=fields("name", name=TEXT, apiGroup=TEXT, kind=TEXT),
            trainer=fields(
                image=TEXT,
                command=TEXTS,
                args=TEXTS,
                env=ENVIRONMENT,
                numNodes=COUNT,
                numProcPerNode=COUNT,
                resourcesPerNode=RESOURCES,
            ),
            activeDeadlineSeconds=COUNT,
        ),
    ),
    "PyTorchJob": resource(
        "kubeflow.org/v1",
        "PyTorchJob",
        fields(
            "pytorchReplicaSpecs",
            runPolicy=fields(
                cleanPodPolicy={"enum": ["All", "Running", "None"]}, backoffLimit=COUNT, activeDeadlineSeconds=COUNT
            ),
            nprocPerNode=TEXT,
            pytorchReplicaSpecs=fields(Master=REPLICA, Worker=REPLICA),
        ),
    ),
    "RayJob": resource(
        "ray.io/v1",
        "RayJob",
        fields(
            entrypoint=TEXT,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
            shutdownAfterJobFinishes=YES_NO,
            backoffLimit=COUNT,
            activeDeadlineSeconds=COUNT,
            rayClusterSpec=fields("headGroupSpec", headGroupSpec=HEAD_GROUP, workerGroupSpecs=several(WORKER_GROUP)),
        ),
    ),
}
SKYPILOT = fields(
    name=TEXT,
    workdir=TEXT,
    num_nodes=COUNT,
    resources=fields(
        image_id=TEXT,
        accelerators=TEXT,
        cpus={"type": ["string", "number"]},
        network_tier={"enum": ["standard", "best"]},
        job_recovery=fields(strategy=TEXT, max_restarts_on_errors=COUNT),
    ),
    volumes={"type": "object"},
    envs=LABELS,
    run=TEXT,
)


@pytest.mark.parametrize("launch", [job(), small("small"), job(accelerator=find_accelerator("mi300x"))])
@pytest.mark.parametrize("target", ["kubeflow", "ray", "skypilot"])
def test_manifests_have_the_fields_that_are_published(target: str, launch: Launch) -> None:
    kinds = []
    for path in emit(target, launch, Path("job")).files[2:]:
        for document in yaml.safe_load_all(path.read_text()):
            jsonschema.validate(document, SKYPILOT if target == "skypilot" else SCHEMAS[document["kind"]])
            kinds.append(document.get("kind", "task"))
    expected = {"kubeflow": ["TrainingRuntime", "TrainJob", "PyTorchJob"], "ray": ["RayJob"], "skypilot": ["task"]}
    assert kinds == expected[target]


def test_pods_see_the_job_and_the_storage_that_worker_and_recipe_need() -> None:
    emit("kubeflow", job(storage_dir="/mnt/llama", storage_claim="claim"), Path("job"))
    runtime, train_job = yaml.safe_load_all(Path("job/trainjob.yaml").read_text())
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert (mounts["job"], mounts["storage"], container["workingDir"]) == ("/job", "/mnt/llama", "/mnt/llama")
    assert train_job["spec"]["trainer"]["command"][-1] == "/job/worker.sh"
    assert train_job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert pod["terminationGracePeriodSeconds"] > job().stop_seconds
