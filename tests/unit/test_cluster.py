"""The job files of recipes/cluster: linted, and run with stand-ins for the commands of a cluster."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import accelerate.commands.launch
import pytest
import yaml
from helpers import ROOT
from support.cluster import Cluster
from support.recipes import NO_GPU, settings_of

from trl_credit.recipe.launch import launch
from trl_credit.recipe.recipe import Recipe


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts are for clusters of Linux machines")

FOLDER = ROOT / "recipes" / "cluster"
SMALL, LARGE = "recipes/qwen2.5-7b/gcpo.yaml", "recipes/qwen2.5-32b/gcpo.yaml"
FIVE = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
SKYPILOT = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
KUBERNETES = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
JOBS = {job["name"]: job["template"]["spec"] for job in KUBERNETES["spec"]["replicatedJobs"]}


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def shellcheck(path: Path, *options: str) -> None:
    command = [str(Path(sys.executable).parent / "shellcheck"), *options, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def launched(words: list[str], monkeypatch):
    """What accelerate and the recipe read from the words of a call of trl-credit."""
    seen = []
    monkeypatch.setattr(accelerate.commands.launch, "launch_command", seen.append)
    monkeypatch.chdir(ROOT)
    assert words[0] == "train"
    launch(words[1:], "train", "trl_credit.train")
    (options,) = seen
    assert (options.module, options.training_script) == (True, "trl_credit.train")
    config = accelerate.commands.launch.load_config_from_file(options.config_file)
    assert config.distributed_type == "DEEPSPEED"
    assert config.rdzv_backend == "static"  # as ranks are given
    return options, Recipe.read([*options.training_script_args, *NO_GPU])


# SLURM


@pytest.mark.parametrize("script", ["slurm.sh", "node.sh"])
def test_scripts_are_clean(script):
    shellcheck(FOLDER / script, "--enable=all", "--exclude=SC2154,SC2250,SC2292,SC2310,SC2312")


def test_one_machine_without_a_server(cluster, monkeypatch):
    with cluster.submit(FIVE[0], SMALL, "--max_steps", "100") as job:
        cluster.ready(job, trl_credit=1)
        cluster.end("trl-credit", 0)
        assert job.wait() == 0, job.stdout.read()
    (call,) = cluster.calls("trl-credit")
    options, recipe = launched(call["words"], monkeypatch)
    assert (options.num_machines, options.num_processes, options.machine_rank) == (1, 8, 0)
    assert recipe.training.output_dir == str(cluster.shared / "outputs" / "qwen2.5-7b-gcpo")
    assert recipe.training.resume_from_checkpoint == "auto"
    assert recipe.training.max_steps == 100
    assert not cluster.calls("vllm")
    assert not [call for call in cluster.calls("scontrol") if "requeue" in call["words"]]


@pytest.mark.parametrize("recipe", ["gcpo", "dgpo_lora"])
def test_four_machines_and_a_server(recipe, cluster, monkeypatch):
    path = f"recipes/qwen2.5-32b/{recipe}.yaml"
    with cluster.submit(",".join(FIVE), path) as job:
        cluster.ready(job, trl_credit=4, vllm=1)
        cluster.end("trl-credit", 0)
        assert job.wait() == 0, job.stdout.read()
    assert cluster.ended("vllm")  # ended with the training
    steps = {call["words"][0]: call["words"] for call in cluster.calls("srun")}
    assert f"--nodelist={','.join(FIVE[:4])}" in steps["--job-name=trainer"]
    assert {"--nodes=4", "--ntasks=4", "--cpus-per-task=64"} <= set(steps["--job-name=trainer"])
    assert f"--nodelist={FIVE[4]}" in steps["--job-name=server"]
    for rank, call in enumerate(cluster.calls("trl-credit")):
        options, read = launched(call["words"], monkeypatch)
        assert (options.num_machines, options.num_processes, options.machine_rank) == (4, 32, rank)
        assert (options.main_process_ip, options.main_process_port) == (FIVE[0], 29500)
        assert (read.training.vllm_mode, read.training.vllm_server_host) == ("server", FIVE[4])
        assert read.training.vllm_server_port == 8000
        assert call["env"]["VLLM_HOST_IP"] == "127.0.0.1"
        assert call["env"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "1800"
    (server,) = cluster.calls("vllm")
    header = re.search(r"VLLM_SERVER_DEV_MODE=1 (vllm serve (?:.|\\\n)*?[^\\])\n", (ROOT / path).read_text())[1]
    expected = shlex.split(re.sub(r"\\\n# +", "", header))[1:]  # TRL's own, and what the recipe's head says
    words = server["words"]
    assert sorted(words) == sorted([*expected, "--port", "8000"])
    assert words[words.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    assert server["env"]["VLLM_SERVER_DEV_MODE"] == "1"


def test_fields_reach_the_server(cluster):
    fields = ["--max_completion_length", "4096", "--model_name_or_path=org/other"]
    with cluster.submit(",".join(FIVE[:2]), LARGE, *fields, PROMPT_TOKENS="1000", SERVER_PORT="8001") as job:
        cluster.ready(job, trl_credit=1, vllm=1)
        cluster.end("trl-credit", 0)
        job.wait()
    (server,) = cluster.calls("vllm")
    assert server["words"][:2] == ["serve", "org/other"]
    assert server["words"][server["words"].index("--max-model-len") + 1] == "5096"
    assert server["words"][server["words"].index("--port") + 1] == "8001"
    (trainer,) = cluster.calls("trl-credit")
    assert trainer["words"][-3:] == fields
    assert trainer["words"][trainer["words"].index("--vllm_server_port") + 1] == "8001"


def requeued(cluster) -> list[list[str]]:
    return [call["words"] for call in cluster.calls("scontrol") if call["words"][0] != "show"]


def test_a_preempted_run_goes_back_into_the_queue(cluster):
    """SLURM signals every step. The server lives on: the update in progress may need it."""
    with cluster.submit(",".join(FIVE), LARGE) as job:
        cluster.ready(job, trl_credit=4, vllm=1)
        cluster.signal(signal.SIGTERM, "server")
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(0.5)  # as long as it may take, nothing ends
        assert cluster.alive("vllm")
        cluster.signal(signal.SIGTERM, "trainer")
        assert job.wait() == 0, job.stdout.read()
        assert "back into the queue, from the last checkpoint" in job.stdout.read()
    assert requeued(cluster) == [["requeue", "77"]]
    assert cluster.ended("vllm")


def test_before_the_time_is_up_only_trainers_are_told(cluster):
    with cluster.submit(",".join(FIVE), LARGE) as job:
        cluster.ready(job, trl_credit=4, vllm=1)
        os.kill(job.pid, signal.SIGUSR1)  # --signal=B:USR1@1800
        assert job.wait() == 0, job.stdout.read()
    (told,) = cluster.calls("scancel")
    assert told["words"] == ["--signal=TERM", "77.1"]
    assert requeued(cluster) == [["requeue", "77"]]


def test_a_cancelled_job_stays_cancelled(cluster):
    with cluster.submit(",".join(FIVE), LARGE) as job:
        cluster.ready(job, trl_credit=4, vllm=1)
        os.kill(job.pid, signal.SIGTERM)  # scancel signals the script, too
        cluster.signal(signal.SIGTERM, "server", "trainer")
        assert job.wait() == 1
    assert not requeued(cluster)


def test_the_end_of_the_server_ends_the_job(cluster):
    with cluster.submit(",".join(FIVE), LARGE) as job:
        cluster.ready(job, trl_credit=4, vllm=1)
        cluster.end("vllm", 7)
        assert job.wait() == 1
        assert f"the vLLM server on {FIVE[4]} ended with 7 before training did" in job.stdout.read()
    assert cluster.ended("trl-credit")
    assert not requeued(cluster)


def test_a_failed_training_is_no_preemption(cluster):
    with cluster.submit(",".join(FIVE), LARGE) as job:
        cluster.ready(job, trl_credit=4, vllm=1)
        cluster.end("trl-credit", 1)
        assert job.wait() == 1
        assert "training ended with 1" in job.stdout.read()
    assert not requeued(cluster)
    assert cluster.ended("vllm")


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        ([LARGE], {}, "needs a node for the vLLM server"),
        (["recipes/qwen2.5-7b/gcpoo.yaml"], {}, "there is no recipe 'recipes/qwen2.5-7b/gcpoo.yaml'"),
        ([SMALL], {"SHARED": "/proc/nothing"}, "'/proc/nothing' cannot be written to"),
        ([SMALL], {"LAUNCHER": "zero33.yaml"}, "there is no launcher configuration 'zero33.yaml'"),
        ([], {}, "the recipe, such as"),
    ],
)
def test_errors_before_anything_starts(words, env, message, cluster):
    with cluster.submit(FIVE[0], *words, **env) as job:
        assert job.wait() != 0
        assert message in job.stdout.read()
    assert not cluster.calls("trl-credit")
    assert not cluster.calls("vllm")


def test_submitted_in_another_folder(cluster, tmp_path):
    job_env = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": FIVE[0]}
    with cluster.start(["bash", str(FOLDER / "slurm.sh"), SMALL], cwd=tmp_path, **job_env) as job:
        assert job.wait() == 1
        assert "submit in the repository's root" in job.stdout.read()


# Kubernetes


def pod(job: str) -> dict:
    return JOBS[job]["template"]["spec"]


def container(job: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a job's pods."""
    (only,) = pod(job)["containers"]
    return only["command"], {entry["name"]: entry["value"] for entry in only["env"]}


@pytest.mark.parametrize("job", ["trainer", "server"])
def test_the_jobs_have_the_fields_of_a_job(job):
    """Those of batch/v1 that the files use. Unknown ones would be refused by the API."""
    spec = JOBS[job]
    assert spec.keys() <= {
        "completionMode",
        "completions",
        "parallelism",
        "backoffLimit",
        "podFailurePolicy",
        "template",
    }
    assert spec["completionMode"] == "Indexed"  # gives each pod its number and its name
    assert spec["completions"] == spec["parallelism"]
    assert spec["backoffLimit"] == 0  # the JobSet starts again, not the pod alone
    assert pod(job).keys() <= {"restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"}
    assert pod(job)["restartPolicy"] == "Never"  # a condition of podFailurePolicy
    (only,) = pod(job)["containers"]
    assert only.keys() == {"name", "image", "workingDir", "env", "resources", "command", "volumeMounts"}
    assert {mount["name"] for mount in only["volumeMounts"]} == {volume["name"] for volume in pod(job)["volumes"]}
    on_codes, on_conditions = spec["podFailurePolicy"]["rules"]
    assert on_codes == {
        "action": "FailJob", "onExitCodes": {"containerName": only["name"], "operator": "In", "values": [143]}
    }  # fmt: skip
    assert on_conditions == {
        "action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]
    }  # fmt: skip


def test_the_job_set():
    assert (KUBERNETES["apiVersion"], KUBERNETES["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec, name = KUBERNETES["spec"], KUBERNETES["metadata"]["name"]
    assert spec.keys() == {"network", "successPolicy", "failurePolicy", "replicatedJobs"}
    assert spec["network"] == {"enableDNSHostnames": True}
    assert spec["successPolicy"] == {"operator": "All", "targetReplicatedJobs": ["trainer"]}
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    _, env = container("trainer")
    # JOBSET-JOB-REPLICA-POD.JOBSET
    assert (env["HEAD"], env["SERVER"]) == (f"{name}-trainer-0-0.{name}", f"{name}-server-0-0.{name}")
    assert int(env["TRAINERS"]) == JOBS["trainer"]["completions"]
    assert int(env["GRACE"]) == pod("trainer")["terminationGracePeriodSeconds"]
    for job in JOBS:
        (only,) = pod(job)["containers"]
        assert only["resources"]["limits"]["nvidia.com/gpu"] == int(env["GPUS"])
        assert env["SHARED"] in {mount["mountPath"] for mount in only["volumeMounts"]}


def test_pods_run_what_slurm_runs(cluster, monkeypatch):
    command, env = container("trainer")
    env |= {"SHARED": str(cluster.shared), "SERVER": "127.0.0.5"}  # names and folders of the cluster
    cluster.end("trl-credit", 0)
    for rank in range(JOBS["trainer"]["completions"]):
        with cluster.start(command, **env, JOB_COMPLETION_INDEX=str(rank)) as node:
            assert node.wait() == 0, node.stdout.read()
    options = [launched(call["words"], monkeypatch)[0] for call in cluster.calls("trl-credit")]
    assert sorted(found.machine_rank for found in options) == [0, 1, 2, 3]
    assert {(found.num_machines, found.num_processes, found.main_process_ip) for found in options} == {
        (4, 32, env["HEAD"])
    }
    command, env = container("server")
    cluster.end("vllm", 0)
    with cluster.start(command, **env) as node:
        assert node.wait() == 0, node.stdout.read()
    (server,) = cluster.calls("vllm")
    assert server["words"][:2] == ["serve", settings_of(ROOT / LARGE)["model_name_or_path"]]


def test_sigterm_reaches_the_launcher_of_a_pod(cluster):
    """The script is replaced by the launcher, so that the pod's first process saves and exits with 143."""
    command, env = container("trainer")
    with cluster.start(command, **env | {"SHARED": str(cluster.shared), "SERVER": "127.0.0.5"}) as node:
        cluster.ready(node, trl_credit=1)
        os.kill(node.pid, signal.SIGTERM)
        assert node.wait() == 143


def test_a_machine_that_has_no_address_is_named(cluster, tmp_path):
    quick = tmp_path / "bin"
    quick.mkdir()
    (quick / "timeout").write_text('#!/usr/bin/env bash\nexec /usr/bin/env -i PATH="$PATH" false\n')
    (quick / "timeout").chmod(0o755)
    command, env = container("trainer")
    env |= {"SHARED": str(cluster.shared), "HEAD": "nowhere", "PATH": f"{quick}:{cluster.env['PATH']}"}
    with cluster.start(command, **env) as node:
        assert node.wait() == 2
        assert "'nowhere' has no address after 10 minutes" in node.stdout.read()


# SkyPilot


def test_the_task_has_the_fields_of_a_task():
    assert SKYPILOT.keys() == {"name", "resources", "envs", "file_mounts", "num_nodes", "workdir", "setup", "run"}
    assert SKYPILOT["resources"].keys() == {"accelerators", "use_spot", "disk_size", "job_recovery"}
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    (path,) = SKYPILOT["file_mounts"]
    assert path == SKYPILOT["envs"]["SHARED"]
    assert SKYPILOT["file_mounts"][path]["mode"] == "MOUNT_CACHED"
    assert SKYPILOT["num_nodes"] == 1
    assert "exec " not in SKYPILOT["run"]  # SkyPilot's wait for the uploads comes after it in the same shell


@pytest.mark.parametrize("part", ["setup", "run"])
def test_the_shell_of_the_task_is_clean(part, tmp_path):
    script = tmp_path / "task.sh"
    script.write_text(SKYPILOT[part])
    shellcheck(script, "--shell=bash", "--exclude=SC2086")  # FIELDS are words


def test_the_task_trains(cluster, monkeypatch, tmp_path):
    env = {**SKYPILOT["envs"], "SHARED": str(cluster.shared), "SKYPILOT_NUM_GPUS_PER_NODE": "8", "HOME": str(tmp_path)}
    cluster.end("trl-credit", 143)
    with cluster.start(["bash", "-c", SKYPILOT["run"]], **env) as task:
        assert task.wait() == 143, task.stdout.read()
    (call,) = cluster.calls("trl-credit")
    options, recipe = launched(call["words"], monkeypatch)
    assert (options.num_machines, options.num_processes, options.machine_rank) == (1, 8, 0)
    assert recipe.training.save_steps == 30
    assert recipe.training.resume_from_checkpoint == "auto"
