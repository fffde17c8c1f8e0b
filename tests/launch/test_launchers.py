"""The launchers with stand-ins for gcloud, kubectl and SLURM that write down their arguments and run what they are given."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.run.commands import ROOT

AWKWARD = ["run_dir=gs://bucket/a b", 'data.train=it\'s "quoted" $HOME `x` * \\', "eval.suites=[math_500,aime2024]"]
TPU = {"PROJECT": "p", "ZONE": "z", "ACCELERATOR": "v5p-128", "POLL_S": "0"}
GKE = {"IMAGE": "registry/image:1", "ACCELERATOR": "tpu-v5p-slice", "TOPOLOGY": "4x4x8"}


@pytest.fixture
def bin_dir(tmp_path) -> Path:
    """A folder for PATH. `stand_in` puts commands there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def stand_in(bin_dir: Path, name: str, script: str = "") -> Path:
    """A command that appends its arguments, as a JSON list, to a file, and then runs `script`; returns that file."""
    record = bin_dir / f"{name}.calls"
    record.touch()
    python = "import json, sys; print(json.dumps(sys.argv[1:]))"
    command = bin_dir / name
    command.write_text(f'#!/usr/bin/env bash\npython3 -c {shlex.quote(python)} "$@" >> {shlex.quote(str(record))}\n{script}\n')
    command.chmod(0o755)
    return record


def calls(record: Path) -> list[list[str]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def resources(record: Path) -> list[str]:
    """What gcloud was asked to do with queued resources, looking aside."""
    return [call[3] for call in calls(record) if call[2] == "queued-resources" and call[3] != "describe"]


def launch(script: str, *arguments: str, bin_dir: Path, root: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if key != "EXTRAS"}  # .ci/run sets it for its own install
    env = inherited | {"PATH": f"{bin_dir}:{os.environ['PATH']}"} | variables
    command = ["bash", str(root / "launch" / script), *arguments]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=120)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or str(Path(os.sys.executable).parent / "shellcheck")
    scripts = [str(path) for path in sorted((ROOT / "launch").glob("*.sh"))]
    done = subprocess.run([shellcheck, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["local_pod.sh", "gpu.sh", "slurm.sh", "tpu_vm.sh", "gke.sh"])
def test_help_is_the_head_of_the_script_and_a_missing_argument_is_bad_usage(script, bin_dir):
    shown = launch(script, "--help", bin_dir=bin_dir)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"launch/{script} [--dry-run]" in shown.stdout or f"launch/{script} --dry-run" in shown.stdout
    refused = launch(script, bin_dir=bin_dir)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(shown.stdout) and re.search(rf"\n{script}: .* needed\n$", refused.stderr)


def test_help_of_the_quickstart_installs_nothing(bin_dir, tmp_path):
    shown = launch("quickstart.sh", "--help", bin_dir=bin_dir, VENV=str(tmp_path / "none"))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "launch/quickstart.sh [key=value ...]" in shown.stdout and not (tmp_path / "none").exists()


def test_tpu_vm_dry_run_prints_the_commands_that_run(bin_dir):
    """Each printed line, read by a shell, is a command that the same action without --dry-run calls with equal arguments."""
    record = stand_in(bin_dir, "gcloud", 'case "$*" in *describe*) echo ACTIVE ;; esac')
    git = stand_in(bin_dir, "git")
    for action in (["create", "slice"], ["install", "slice"], ["train", "slice", "c.yaml", *AWKWARD], ["delete", "slice"]):
        record.write_text("")
        git.write_text("")
        printed = launch("tpu_vm.sh", "--dry-run", *action, bin_dir=bin_dir, **TPU)
        assert printed.returncode == 0, printed.stderr
        assert calls(record) == calls(git) == []
        done = launch("tpu_vm.sh", *action, bin_dir=bin_dir, **TPU)
        assert done.returncode == 0, done.stderr
        polled = [call for call in calls(record) if "describe" not in call]
        lines = [shlex.split(line) for line in printed.stdout.splitlines()]
        assert sorted(lines) == sorted([["gcloud", *c] for c in polled] + [["git", *c] for c in calls(git)])


def test_overrides_reach_the_workers_unchanged(bin_dir, tmp_path):
    """The command line that gcloud is given is run by a shell, as on a worker."""
    record = stand_in(bin_dir, "gcloud")
    assert launch("tpu_vm.sh", "train", "slice", "my config.yaml", *AWKWARD, bin_dir=bin_dir, **TPU).returncode == 0
    (command,) = (word.removeprefix("--command=") for word in calls(record)[0] if word.startswith("--command="))
    worker = tmp_path / "jaxgrpo" / ".venv" / "bin"
    worker.mkdir(parents=True)
    received = stand_in(worker, "jaxgrpo", "exit 75")
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path)
    assert calls(received) == [["train", "my config.yaml", *AWKWARD, "hosts.count=0"]]
    assert done.returncode == 75  # not that of tee


def fake_slice(bin_dir: Path, training: str, describe: str = "echo ACTIVE", create: str = "") -> Path:
    """gcloud and git. `training`, `describe` and `create` are what those calls run; $N counts the calls of each, from 1."""

    def counted(call: str, script: str) -> str:
        return f"N=$(($(cat {bin_dir}/{call} 2> /dev/null || echo 0) + 1)); echo $N > {bin_dir}/{call}; {script}"

    stand_in(bin_dir, "git")
    script = f"""
    case "$*" in
      *" create "*) rm -f {bin_dir}/describe; {counted("create", create)} ;;
      *describe*) {counted("describe", describe)} ;;
      *hosts.count*) {counted("training", training)} ;;
    esac"""
    return stand_in(bin_dir, "gcloud", script)


def run_slice(bin_dir: Path, **variables: str) -> subprocess.CompletedProcess:
    return launch("tpu_vm.sh", "run", "slice", "c.yaml", bin_dir=bin_dir, **TPU | variables)


TWICE = "[ $N -ge 2 ] || exit 1"  # of the training: the first one is lost


def test_a_spot_slice_that_is_taken_away_is_asked_for_again_and_given_back_at_the_end(bin_dir):
    record = fake_slice(
        bin_dir,
        TWICE,
        f"[ $N = 1 ] || [ -e {bin_dir}/again ] && echo ACTIVE || echo SUSPENDED",
        f"[ $N = 1 ] || touch {bin_dir}/again",
    )
    done = run_slice(bin_dir, SPOT="1")
    assert done.returncode == 0, done.stderr
    assert resources(record) == ["create", "delete", "create", "delete"]
    assert all("--spot" in call for call in calls(record) if call[3] == "create")


def test_a_job_that_stopped_to_be_started_again_keeps_its_slice(bin_dir):
    record = fake_slice(bin_dir, "[ $N -ge 2 ] || exit 75")
    assert run_slice(bin_dir).returncode == 0
    assert resources(record) == ["create", "delete"] and (bin_dir / "training").read_text().strip() == "2"


@pytest.mark.parametrize(
    "describe",
    ["[ $N = 1 ] || [ $N -ge 4 ] || exit 1; echo ACTIVE", "[ $N = 2 ] || [ $N = 3 ] && echo SUSPENDED || echo ACTIVE"],
    ids=["not answered twice", "said to be gone twice"],
)
def test_a_moment_without_a_clear_answer_deletes_no_healthy_slice(describe, bin_dir):
    record = fake_slice(bin_dir, "[ $N -ge 2 ] || exit 137", describe)
    done = run_slice(bin_dir)
    assert done.returncode == 0, done.stderr
    assert resources(record) == ["create", "delete"] and (bin_dir / "training").read_text().strip() == "2"


def test_a_slice_of_which_nothing_can_be_told_stays(bin_dir):
    record = fake_slice(bin_dir, "exit 255", '[ $N = 1 ] && echo ACTIVE || { echo "ERROR: network unreachable" >&2; exit 1; }')
    done = run_slice(bin_dir)
    assert done.returncode == 255 and resources(record) == ["create"]
    assert "asking about slice failed: ERROR: network unreachable" in done.stderr
    assert "what became of slice cannot be told (UNKNOWN): it stays, and may cost" in done.stderr


def test_a_slice_that_is_gone_is_created_again(bin_dir):
    describe = (
        f"[ $N = 1 ] || [ -e {bin_dir}/again ] && echo ACTIVE || {{ echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; }}"
    )
    record = fake_slice(bin_dir, TWICE, describe, f"[ $N = 1 ] || touch {bin_dir}/again")
    assert run_slice(bin_dir).returncode == 0
    assert resources(record) == ["create", "create", "delete"]


def test_a_slice_that_this_call_did_not_create_is_not_deleted(bin_dir):
    record = fake_slice(bin_dir, "", create='echo "ERROR: ALREADY_EXISTS" >&2; exit 1')
    done = run_slice(bin_dir)
    assert done.returncode == 1 and resources(record) == ["create"]
    assert "slice was not created (exit code 1); nothing is deleted" in done.stderr


def test_a_failure_of_the_job_itself_does_not_ask_for_another_slice(bin_dir):
    record = fake_slice(bin_dir, "exit 2")
    assert run_slice(bin_dir).returncode == 2
    assert resources(record) == ["create", "delete"]


def test_what_a_slice_needs_is_asked_for(bin_dir):
    done = launch("tpu_vm.sh", "create", "slice", bin_dir=bin_dir, PROJECT="p", ZONE="", ACCELERATOR="")
    said = "tpu_vm.sh: set ZONE=us-east5-a ACCELERATOR=v5p-128 (these are examples; see --help)\n"
    assert (done.returncode, done.stderr) == (2, said)
    done = launch("gke.sh", "job", "c.yaml", bin_dir=bin_dir, **GKE | {"IMAGE": "", "TOPOLOGY": ""})
    assert done.returncode == 2 and "set IMAGE=REGISTRY/jaxgrpo TOPOLOGY=2x2x2 (" in done.stderr


def test_the_jobset_holds_the_command_and_a_valid_job(bin_dir):
    import kubernetes_validate

    applied = stand_in(bin_dir, "kubectl", f"cat > {bin_dir}/applied.json")
    printed = launch("gke.sh", "--dry-run", "job", "c.yaml", *AWKWARD, bin_dir=bin_dir, **GKE)
    assert printed.returncode == 0 and calls(applied) == []
    assert launch("gke.sh", "job", "c.yaml", *AWKWARD, bin_dir=bin_dir, **GKE).returncode == 0
    manifest = json.loads((bin_dir / "applied.json").read_text())
    assert manifest == json.loads(printed.stdout)
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}} | replicated["template"]
    kubernetes_validate.validate(job, "1.30", strict=True)
    spec = job["spec"]
    assert spec["parallelism"] == spec["completions"] == 32  # 128 chips, 4 to a host
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"][1:] == ["train", "c.yaml", *AWKWARD, "hosts.count=0"]
    assert "cloud.google.com/gke-spot" not in spec["template"]["spec"]["nodeSelector"]
    spot = json.loads(launch("gke.sh", "--dry-run", "job", "c.yaml", bin_dir=bin_dir, SPOT="1", **GKE).stdout)
    pod = spot["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"


def test_a_topology_that_its_hosts_do_not_divide_is_refused(bin_dir):
    for name, wrong, said in (
        ("job", {"TOPOLOGY": "2x2xx"}, "gke.sh: TOPOLOGY=2x2xx is no shape such as 2x2x2\n"),
        ("job", {"CHIPS": "four"}, "gke.sh: CHIPS=four is no number of chips\n"),
        ("NAME", {}, "gke.sh: NAME=NAME: Kubernetes takes small letters, digits and -, at most 40, a letter first\n"),
    ):
        refused = launch("gke.sh", "--dry-run", name, "c.yaml", bin_dir=bin_dir, **GKE | wrong)
        assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", said)
    done = launch("gke.sh", "--dry-run", "job", "c.yaml", bin_dir=bin_dir, **GKE | {"TOPOLOGY": "1x3"})
    assert done.returncode != 0 and "3 chips" in done.stderr


def test_slurm_gives_every_task_its_number_and_goes_back_into_the_queue_when_stopped(bin_dir, tmp_path):
    """srun's stand-in runs two tasks as SLURM would."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / ".venv" / "bin").mkdir(parents=True)
    received = stand_in(root / ".venv" / "bin", "jaxgrpo", "exit 75")
    stand_in(bin_dir, "srun", 'shift; for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" || code=$?; done; exit "$code"')
    control = stand_in(bin_dir, "scontrol", 'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; fi')
    slurm = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node-[a-b]"}
    slurm["SLURM_SUBMIT_DIR"] = str(root)
    done = launch("slurm.sh", "c.yaml", *AWKWARD, bin_dir=bin_dir, root=root, **slurm)
    assert done.returncode == 75, done.stderr
    pod = ["hosts.count=2", "hosts.coordinator=node-a:20345"]
    assert sorted(calls(received)) == [["train", "c.yaml", *AWKWARD, *pod, f"hosts.index={i}"] for i in (0, 1)]
    assert ["requeue", "12345"] in calls(control)
    printed = launch("slurm.sh", "--dry-run", "c.yaml", *AWKWARD, bin_dir=bin_dir, root=root, **slurm)
    assert shlex.split(printed.stdout)[-7:] == ["train", "c.yaml", *AWKWARD, *pod]
    refused = launch("slurm.sh", "c.yaml", bin_dir=bin_dir, SLURM_JOB_ID="")
    assert refused.returncode == 2 and "submit it with sbatch" in refused.stderr


def test_a_gpu_machine_is_installed_once_and_a_killed_run_started_again(bin_dir, tmp_path):
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "launch" / "setup.sh").write_text(f'echo "$EXTRAS" >> {tmp_path}/installed\n')
    (root / ".venv" / "bin").mkdir(parents=True)
    received = stand_in(
        root / ".venv" / "bin", "jaxgrpo", f"[ -e {tmp_path}/again ] || {{ touch {tmp_path}/again; kill -9 $$; }}"
    )
    done = launch("gpu.sh", "c.yaml", *AWKWARD, bin_dir=bin_dir, root=root)
    assert done.returncode == 0, done.stderr
    assert calls(received) == [["train", "c.yaml", *AWKWARD]] * 2
    assert (tmp_path / "installed").read_text() == "jetstream,cuda,gcs\n"


def test_local_pod_dry_run_names_every_process(bin_dir):
    printed = launch("local_pod.sh", "--dry-run", "3", "c.yaml", *AWKWARD, bin_dir=bin_dir, JAXGRPO="jaxgrpo", XLA_FLAGS="")
    lines = [shlex.split(line) for line in printed.stdout.splitlines()]
    device_count = "XLA_FLAGS=--xla_force_host_platform_device_count=2"
    pod = ["hosts.count=3", "hosts.coordinator=127.0.0.1:PORT"]
    assert lines == [
        ["env", "JAX_PLATFORMS=cpu", device_count, "jaxgrpo", "train", "c.yaml", *AWKWARD, pod[0], f"hosts.index={i}", pod[1]]
        for i in range(3)
    ]


def test_local_pod_gives_up_on_an_error_with_a_reason_and_names_the_process(bin_dir, tmp_path):
    ending = 'echo "jaxgrpo: no such file"; echo "*** Check failed: ***"; echo "    @ 0x7f2e start_thread"; echo; exit 2'
    received = stand_in(bin_dir, "fake", f'case "$*" in *index=1*) {ending} ;; *) exit 0 ;; esac')
    done = launch("local_pod.sh", "2", "c.yaml", bin_dir=bin_dir, JAXGRPO=str(bin_dir / "fake"), LOGS=str(tmp_path / "logs"))
    assert done.returncode == 2
    assert "process 1 of 2 is lost (exit code 2); its last line: jaxgrpo: no such file" in done.stderr
    assert len(calls(received)) == 2
