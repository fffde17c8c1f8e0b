"""Every command that the README shows is run here, on stand-ins for what needs a hub: tiny weights, a short run."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from jaxgrpo.bench.task import Task
from jaxgrpo.cli import command_line, main
from tests.data.published import path
from tests.data.tiny_hf import write_tiny_tokenizer
from tests.model.tiny_hf_model import write_tiny_model
from tests.run.commands import CONFIG, ROOT, SHORT, environment, jaxgrpo

README = (ROOT / "README.md").read_text()
LINES = [line.strip().split("#")[0].strip() for line in README.splitlines() if line.startswith("    ")]
DOCS = [line.strip() for line in (ROOT / "docs" / "data.md").read_text().splitlines() if line.startswith("    ")]
COMMANDS = [line for line in LINES if line.startswith("jaxgrpo ")]


def commands(name: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in COMMANDS if shlex.split(line)[1] == name]


def test_every_line_of_code_in_the_readme_is_known_to_these_tests():
    known = ("train ", "export ", "convert ", "data ", "eval ", "serve ", "bench ", "study ", "plan ", "fit")
    known = (*(f"jaxgrpo {name}" for name in known), "python -m scaling", "bash launch/", "sbatch ", "export ")
    assert len(COMMANDS) >= 8
    for line in LINES:
        assert line.startswith((*known, "from jaxgrpo", "import scaling")), line


@pytest.mark.parametrize("arguments", commands("train"), ids=" ".join)
def test_the_train_commands_resolve(arguments, capsys, tmp_path):
    arguments = arguments if "--dry-run" in arguments else [*arguments, "--dry-run"]
    assert main([*arguments, f"run_dir={tmp_path}"]) == 0
    assert "bytes per device" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("study"), ids=" ".join)
def test_the_study_commands_resolve(arguments, capsys, tmp_path):
    assert main([*arguments, f"out={tmp_path}", *([] if "--dry-run" in arguments else ["--dry-run"])]) == 0
    assert "jaxgrpo train" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("plan"), ids=" ".join)
def test_the_plan_commands_print_a_plan(arguments, capsys):
    """By model only; a run that does not fit says so and what to change."""
    main([*arguments, *([] if "--no-compile" in arguments else ["--no-compile"])])
    said = capsys.readouterr()
    assert "tokens/s" in said.out
    assert "fits " in said.out or "It would fit with" in said.err


@pytest.mark.parametrize("line", [line for line in LINES if "launch/" in line and " configs/" in line])
def test_the_launch_commands_have_a_dry_run(line):
    """local_pod.sh itself is run in tests/pods."""
    words = shlex.split(line)
    script = next(i for i, word in enumerate(words) if word.startswith("launch/"))
    env = os.environ | {"PROJECT": "p", "ZONE": "z", "ACCELERATOR": "v5p-8", "IMAGE": "image", "TOPOLOGY": "2x2x1"}
    done = subprocess.run(
        ["bash", words[script], "--dry-run", *words[script + 1 :]], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert words[-1] in done.stdout


def test_the_imports_work():
    code = "\n".join(line for line in LINES if line.startswith(("from ", "import ")))
    assert code.count("import") == 5
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("arguments", commands("bench"), ids=" ".join)
def test_the_bench_commands_describe_a_task_that_can_be(arguments):
    parsed = command_line().parse_args(arguments)
    task = Task(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Task)})
    task.check()
    layers = {None: 4, "random:qwen2.5-0.5b": 24, "random:qwen2.5-1.5b": 28}
    assert task.model_config().layers == layers[task.model]


def test_convert_train_and_export_are_a_circle(tmp_path):
    """HF -> converted -> a run -> HF; and what was only converted comes back bit for bit."""
    env = environment(tmp_path / "xla", devices=2)
    hf = tmp_path / "hf"
    tokenizer = write_tiny_tokenizer(hf)
    write_tiny_model(hf, vocab=512, layers=2, heads=4, head_dim=16, stop_ids=(tokenizer.eos_token_id,))
    assert {len(arguments) for arguments in commands("convert") + commands("export")} == {3}
    assert jaxgrpo("convert", str(hf), str(tmp_path / "converted"), env=env).returncode == 0
    assert jaxgrpo("export", str(tmp_path / "converted"), str(tmp_path / "back"), env=env).returncode == 0
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "back" / name).read_bytes() == (hf / name).read_bytes(), name
    original, back = (load_file(folder / "model.safetensors") for folder in (hf, tmp_path / "back"))
    assert original.keys() == back.keys()
    for name, tensor in original.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)
    run = tmp_path / "run"
    # A random model earns no reward, so that its two updates of lr 1e-3 only shrink every weight by the decay.
    sizes = ("data.max_prompt_tokens=64", "warmup.steps=0", "train.steps=1", "eval.every=0")
    decay = ("optim.lr=1e-3", "optim.warmup_updates=0", "optim.weight_decay=1.0", "algo.kl_coef=0")
    done = jaxgrpo("train", CONFIG, *SHORT, *sizes, *decay, f"model={tmp_path / 'converted'}", f"run_dir={run}", env=env)
    assert done.returncode == 0, done.stderr
    exported = jaxgrpo("export", str(run / "checkpoints" / "1"), str(tmp_path / "trained"), env=env)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "trained" / "tokenizer.json").exists()
    trained = load_file(tmp_path / "trained" / "model.safetensors")
    assert trained.keys() == original.keys()
    for name, tensor in original.items():
        np.testing.assert_allclose(trained[name], tensor * (1 - 1e-3) ** 2, rtol=1e-6, err_msg=name)


DATA = [words for words in commands("data") if words[1] in ("prepare", "reuse")]


@pytest.mark.parametrize("arguments", DATA, ids=" ".join)
def test_the_data_commands_make_files(arguments, tmp_path, monkeypatch):
    """The commands as they stand, in a folder where what they name is small and local."""
    rows = [
        {
            "data_source": "math__x",
            "prompt": f"What is {n} + {n}?",
            "reward_model": {"ground_truth": str(2 * n)},
            "qwen2.5_7b_pass_rate": n / 900,
        }
        for n in range(600)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    stand_ins = {
        "LLM360/guru-RL-92k": "MINE.jsonl",
        "rated.parquet": "MINE.jsonl",
        "data/train.parquet": "data/train.jsonl",
        "data/benchmarks/math__math_500.parquet": "data/benchmarks/math__math_500.jsonl",
    }
    for name in stand_ins.values():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text.splitlines()[599] if "benchmarks" in name else text)
    monkeypatch.chdir(tmp_path)
    assert main([stand_ins.get(argument, argument) for argument in arguments]) == 0
    made = {file.name for file in (tmp_path / "data").rglob("*.parquet")}
    assert {"train.parquet", "heldout.parquet"} <= made or {"sampled_1_1_600.parquet", "sampled_1_100_6.parquet"} <= made


def test_the_data_commands_of_the_readme_make_what_its_other_commands_read(tmp_path, monkeypatch, capsys):
    """The benchmarks where `eval.data` looks, the file that `prepare` takes, and every subset of configs/study-reuse.yaml."""
    (benchmarks,) = (words for words in commands("data") if words[1] == "benchmarks")
    (evaluation,) = (words for words in commands("eval") if any(word.startswith("eval.data=") for word in words))
    assert f"eval.data={benchmarks[2]}" in evaluation
    against = [word for words in DATA for word in words if word.startswith(f"{benchmarks[2]}/")]
    monkeypatch.chdir(tmp_path)
    source = path("benchmarks/gsm8k.parquet").parents[1]
    assert main([*benchmarks, "--from", os.path.relpath(source, tmp_path)]) == 0
    assert against and all((tmp_path / file).exists() for file in against)
    (rating,) = (words for words in commands("data") if words[1] == "rate")
    assert any(rating[rating.index("--out") + 1] == words[2] for words in DATA if words[1] == "prepare")
    (reuse,) = (words for words in DATA if words[1] == "reuse")
    made = {f"{reuse[3]}/sampled_1_{tau}_{51_200 // int(tau)}.parquet" for tau in reuse[reuse.index("--tau") + 1 :]}
    runs = yaml.safe_load((ROOT / "configs" / "study-reuse.yaml").read_text())["runs"]
    assert {run["data.train"] for run in runs.values()} <= made
    assert f"jaxgrpo {' '.join(reuse)}" in (ROOT / "configs" / "study-reuse.yaml").read_text()


def test_the_pod_of_the_readme_does_not_find_the_quickstarts_run_finished():
    (line,) = (line for line in LINES if "local_pod.sh" in line)
    quickstart = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())["run_dir"]
    assert re.search(r"run_dir=(\S+)", line)[1] not in (quickstart, "runs/local_pod")


@pytest.mark.parametrize("line", [line for line in DOCS if line.startswith("jaxgrpo ")])
def test_the_commands_of_the_data_page_can_be_meant(line):
    from jaxgrpo.data.prompts import find_template

    parsed = command_line().parse_args(shlex.split(line)[1:])
    if "--template" in line:
        assert find_template(parsed.template).around("1+1?", "math__x") == r"Solve: 1+1? Put the answer into \boxed{}."


@pytest.mark.parametrize("arguments", commands("eval"), ids=" ".join)
def test_the_eval_commands_can_be_meant(arguments):
    """What they name exists; tests/eval/test_eval_command.py runs such commands to their end."""
    from eval.suite import load_suite
    from jaxgrpo.config import EVALUATION_KEYS, load_config

    parsed = command_line().parse_args(arguments)
    given = [name for name in [*parsed.overrides, *parsed.suite] if "=" in name]
    assert all(load_suite(name).files for name in parsed.suite if "=" not in name)
    assert {override.partition("=")[0] for override in given} <= set(EVALUATION_KEYS)
    assert load_config(parsed.config, given).eval.samples >= 1
    assert (parsed.config is None) != (parsed.checkpoint is None)


@pytest.mark.parametrize("arguments", commands("serve"), ids=" ".join)
def test_the_serve_commands_lead_to_a_server(arguments, tmp_path, monkeypatch):
    """The command as it stands, on a tiny model; the server itself is tested in tests/rollout/test_serve.py."""
    from jaxgrpo.rollout import supervisor
    from jaxgrpo.train.inference import find, make_engine

    directory = tmp_path / "model"
    tokenizer = write_tiny_tokenizer(directory)
    write_tiny_model(
        directory, vocab=512, layers=2, heads=4, head_dim=16, max_positions=1000, stop_ids=(tokenizer.eos_token_id,)
    )
    started = []
    monkeypatch.setattr(supervisor.Supervisor, "run", lambda self: started.append(json.loads(self.command[-1])) or 0)
    assert main(["serve", str(directory), *arguments[2:]]) == 0
    (options,) = started
    assert options["host"] == "127.0.0.1" and options["port"] > 0
    assert make_engine(find(options["checkpoint"], options["overrides"])).max_concurrent_decodes >= 8


@pytest.mark.parametrize("arguments", commands("fit"), ids=" ".join)
def test_the_fit_commands_are_understood(arguments, tmp_path, monkeypatch):
    given = [argument for argument in arguments[1:] if argument.startswith("--")]
    usage = subprocess.run([sys.executable, "-m", "scaling", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for option in given:
        assert re.search(rf"{option}\b", usage.stdout), option


def test_fit_without_arguments_prints_the_published_table(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "jaxgrpo.cli", "fit", "--bootstrap", "50", "--out", str(tmp_path / "law")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "K_max" in done.stdout
