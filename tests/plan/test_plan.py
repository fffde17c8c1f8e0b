"""`jaxgrpo plan`: topologies, memory against the compiler's committed figures, remedies, and the simulation for scale."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxgrpo.cli import main
from jaxgrpo.config import Config, load_config, replace
from jaxgrpo.model.source import resolve_model
from jaxgrpo.plan import scale
from jaxgrpo.plan.compiled import is_available
from jaxgrpo.plan.memory import memory
from jaxgrpo.plan.run import make_plan, remedy, suggest
from jaxgrpo.plan.timing import Assumptions
from jaxgrpo.plan.topology import CHIPS, TopologyError, parse_topology
from jaxgrpo.train.sizes import GIB, resolve_sizes
from tests.run.commands import ROOT


def model_of(size: str):
    return resolve_model(f"random:qwen2.5-{size}", need_weights=False).config


@pytest.mark.parametrize(
    "name, chips, hosts",
    [("v5p:4x4x8", 128, 32), ("v5e:2x2", 4, 1), ("v6e:8x16", 128, 32), ("h200:8", 8, 1), ("H100:16", 16, 2)],
)
def test_topologies_are_read(name, chips, hosts):
    topology = parse_topology(name)
    assert (topology.chips, topology.hosts) == (chips, hosts)


@pytest.mark.parametrize(
    "name, message",
    [
        ("v5f:2x2", "did you mean v5"),
        ("tpu", "known are v5e, v5p"),
        ("v5p:4x4", "v5p comes in shapes such as v5p:4x4x4|such as v5p:"),
        ("h200:2x4", "such as h200:"),
        ("v5e:", "such as v5e:"),
        ("h200:12", "no whole number of hosts of 8"),
    ],
)
def test_topologies_that_do_not_exist_are_refused(name, message):
    with pytest.raises(TopologyError, match=message):
        parse_topology(name)


def compiled_table(name: str) -> list[dict]:
    """The rows of a table in benchmarks/, which the TPU compiler gave."""
    heads, rows = None, []
    for line in (ROOT / "benchmarks" / name).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| model"):
            heads = cells
        elif heads and re.match(r"\| \d", line):
            rows.append(dict(zip(heads, cells, strict=True)))
    return rows


@pytest.mark.parametrize("row", compiled_table("tpu_training_programs.md"), ids=lambda row: f"{row['model']}-{row['slice']}")
def test_the_model_of_memory_agrees_with_the_compiler_on_training(row):
    """State within a rounding of the table's two decimals, temporaries within 25 %."""
    chip, shape = row["slice"].split()
    _, tensor = map(int, row["fsdp x tensor"].split(" x "))
    topology, model = parse_topology(f"{chip}:{shape}"), model_of(row["model"].lower())
    changes = {"mesh.tensor": tensor, "train.row_tokens": int(row["row"].replace(",", ""))}
    config = resolve_sizes(replace(Config(), changes), model, topology.chips, topology.memory)
    found = memory(config, model, topology)
    for kind, column in (("parameters", "parameters"), ("optimiser", "moments"), ("reference", "reference")):
        assert found.table[kind] / GIB == pytest.approx(float(row[column]), abs=0.0051), kind
    assert found.temporaries["update"] / GIB == pytest.approx(float(row["update temp."]), rel=0.25)
    assert found.temporaries["score"] / GIB == pytest.approx(float(row["score temp."]), rel=0.25)
    assert found.peak("update") / GIB == pytest.approx(float(row["update"]), rel=0.25)


@pytest.mark.parametrize(
    "row", compiled_table("tpu_rollout_programs.md"), ids=lambda row: f"{row['model']}-{row['slice']}".replace(" ", "-")
)
def test_the_model_of_memory_agrees_with_the_compiler_on_rollouts(row):
    """Weights and slots within a rounding of the table's two decimals and the slots' few counters, temporaries within 25 %."""
    size, *weights = row["model"].split()
    chip, shape = row["slice"].split()
    topology, model = parse_topology(f"{chip}:{shape}"), model_of(size.lower())
    changes = {"rollout.weights": weights[0] if weights else ""}
    config = resolve_sizes(replace(Config(), changes), model, topology.chips, topology.memory)
    found = memory(config, model, topology)
    assert found.table["rollout weights"] / GIB == pytest.approx(float(row["weights"]), rel=0.01, abs=0.0051)
    assert found.table["KV cache"] / GIB == pytest.approx(float(row["slots' cache"]), rel=0.01, abs=0.0051)
    temporaries = float(row["peak"]) - sum(float(row[column]) for column in ("training state", "weights", "slots' cache"))
    assert found.temporaries["rollout"] / GIB == pytest.approx(temporaries, rel=0.25)


def compiled_plans(name: str) -> list[dict]:
    """What the commands in benchmarks/ wrote."""
    return json.loads((ROOT / "benchmarks" / name).read_text())


@pytest.mark.parametrize(
    "row", compiled_plans("plan_tpu.json") + compiled_plans("plan_gpu.json"), ids=lambda row: f"{row['size']}-{row['topology']}"
)
def test_the_peaks_of_plans_agree_with_the_compiler(row):
    """Every phase fits by what the compiler said; the model of memory gives temporaries within 25 % and peaks within 15 %."""
    changes = {f"mesh.{axis}": size for axis, size in row["mesh"].items()} | {"train.row_tokens": row["row_tokens"]}
    model, topology = model_of(row["size"]), parse_topology(row["topology"])
    config = load_config(str(ROOT / "configs" / f"qwen2.5-{row['size']}.yaml"), row.get("overrides", []))
    plan = make_plan(replace(config, changes), model, topology, Assumptions())
    for phase, peak in row["compiler_peaks"].items():
        assert peak <= topology.memory
        if phase in ("update", "rollout"):  # the others are never the largest
            assert plan.memory.peak(phase) == pytest.approx(peak, rel=0.15), phase
    for phase, size in row["compiler_temporaries"].items():
        assert plan.memory.temporaries[phase] == pytest.approx(size, rel=0.25), phase


@pytest.mark.parametrize("size", ["1.5b", "3b"])
def test_what_the_compiler_says_of_a_gpu_is_what_was_measured_on_it(size):
    """The update of benchmarks/update_h200.md, compiled without the H200, against the memory that it took there."""
    (row,) = (
        row for row in compiled_plans("plan_gpu.json") if row["size"] == size and "train.remat=matmuls" in row["overrides"]
    )
    measured = json.loads((ROOT / "benchmarks" / f"update_h200_{size}.json").read_text())
    assert row["compiler_peaks"]["update"] == pytest.approx(measured["peak_device_mb"] * 1e6, rel=0.01)


def compiled_now(path: Path, *arguments: str) -> dict:
    """What `jaxgrpo plan ...` writes where it compiles, in a process of its own: this one's devices are virtual CPUs."""
    env = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run(
        [sys.executable, "-m", "jaxgrpo.cli", "plan", *arguments, "--json", str(path)], cwd=ROOT, env=env, check=True
    )
    return json.loads(path.read_text())


@pytest.mark.skipif(not is_available(CHIPS["v5e"]), reason="libtpu is not installed: EXTRAS=test,tpu launch/test.sh")
@pytest.mark.timeout(900)
def test_programs_with_state_in_host_memory_compile_for_a_tpu(tmp_path):
    """The moments, in bfloat16, and the reference leave the chip; nothing else grows by more than they were."""
    arguments = "configs/qwen2.5-0.5b.yaml", "model=random:qwen2.5-0.5b", "--topology", "v5e:2x2"
    found = compiled_now(tmp_path / "plan.json", *arguments, "train.offload=all", "optim.moments_dtype=bfloat16")
    table = found["bytes_per_chip"]
    assert table["host memory"] == pytest.approx(1.5 * table["parameters"], rel=0.01) and table["reference"] == 0
    own = found["compiler_peaks"]["update"] - found["compiler_temporaries"]["update"]
    assert own < 1.25 * table["parameters"], "parameters and a minibatch are all that stays on the chip"
    for phase, peak in found["compiler_peaks"].items():
        assert peak <= found["memory"], phase
    assert found["temporaries"]["update"] == pytest.approx(found["compiler_temporaries"]["update"], rel=0.25)


needs_cuda_compiler = pytest.mark.skipif(not is_available(CHIPS["h200"]), reason="EXTRAS=cuda,test launch/test.sh installs it")


@pytest.mark.slow
@needs_cuda_compiler
@pytest.mark.parametrize("row", compiled_plans("plan_gpu.json"), ids=lambda row: f"{row['size']}-{row['topology']}")
def test_gpu_programs_compile_and_take_what_is_written_down(row, tmp_path):
    arguments = f"configs/qwen2.5-{row['size']}.yaml", f"model=random:qwen2.5-{row['size']}", "--topology", row["topology"]
    found = compiled_now(tmp_path / "plan.json", *arguments, *row["overrides"])
    assert found["compiler_peaks"] == pytest.approx(row["compiler_peaks"], rel=0.03)


@pytest.mark.slow
@needs_cuda_compiler
@pytest.mark.parametrize("chip", [chip.name for chip in CHIPS.values() if not chip.is_tpu])
def test_the_decoding_kernel_compiles_for_every_gpu(chip, tmp_path):
    arguments = "configs/qwen2.5-0.5b.yaml", "model=random:qwen2.5-0.5b", "--topology", f"{chip}:1"
    found = compiled_now(tmp_path / "plan.json", *arguments, "rollout.attention=triton")
    assert found["compiler_peaks"]["rollout"] <= found["memory"]


@pytest.mark.parametrize(
    "size, name",
    [("0.5b", "v5e:2x2"), ("1.5b", "v5e:2x4"), ("3b", "v5e:4x4"), ("7b", "v5p:2x2x2"), ("14b", "v5p:2x2x4")]
    + [("32b", "v5p:4x4x4"), ("72b", "v5p:4x4x8")],
)
def test_every_size_has_a_slice_on_which_it_fits(size, name):
    plans = suggest(Config(), model_of(size), parse_topology(name), Assumptions())
    assert plans and all(plan.fits for plan in plans)
    assert [round(plan.step_s, 2) for plan in plans] == sorted(round(plan.step_s, 2) for plan in plans)
    best = plans[0]
    assert best.config.rollout.tensor <= 4  # a replica is one host's
    assert best.tokens_per_s(Assumptions()) * best.step_s == pytest.approx(4096 * 1100)


def test_machines_of_gpus_keep_a_copy_of_the_state_each_where_it_fits():
    """Gradients then cross the slow network between them, not the weights of every micro-batch."""
    model, place = model_of("14b"), parse_topology("h100:16")
    best = suggest(Config(), model, place, Assumptions())[0]
    assert (best.config.mesh.data, best.config.mesh.fsdp * best.config.mesh.tensor) == (2, 8)
    spread = make_plan(replace(Config(), {"mesh.fsdp": 16}), model, place, Assumptions())
    assert best.seconds["update"] < 0.5 * spread.seconds["update"]
    assert best.memory.table["parameters"] == pytest.approx(2 * spread.memory.table["parameters"], rel=0.001)  # but for norms


def test_what_does_not_fit_names_a_change_that_does():
    topology, model = parse_topology("v5e:4x4"), model_of("7b")
    change = remedy(Config(), model, topology, Assumptions())
    changes = dict(word.split("=") for word in change.split())
    assert set(changes) == {"mesh.fsdp", "mesh.tensor", "train.row_tokens"}
    config = replace(Config(), {key: int(value) for key, value in changes.items()})
    assert make_plan(config, model, topology, Assumptions()).fits
    assert remedy(Config(), model, parse_topology("v5e:2x2"), Assumptions()).startswith("--topology v5e:4x4 ")
    assert remedy(Config(), model_of("72b"), parse_topology("v5e:2x2"), Assumptions()) is None


def test_more_chips_are_faster_and_longer_responses_slower():
    model = model_of("7b")
    small, large = (make_plan(Config(), model, parse_topology(name), Assumptions()) for name in ("v5p:2x2x4", "v5p:4x4x4"))
    assert large.step_s < small.step_s < 5 * large.step_s
    longer = make_plan(Config(), model, parse_topology("v5p:2x2x4"), Assumptions(response=2000))
    assert longer.seconds["rollout"] > 1.8 * small.seconds["rollout"]


def test_the_command_prints_bytes_seconds_and_cost_and_writes_json(tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", "configs/qwen2.5-0.5b.yaml", "model=random:qwen2.5-0.5b", "plan.chip_hour_price=1.2"]
    assert main([*arguments, "--topology", "v5e:2x2", "--no-compile", "--json", str(out)]) == 0
    printed, figures = capsys.readouterr().out, json.loads(out.read_text())
    assert "KV cache" in printed and "steps an hour" in printed and "at 1.2 a chip-hour" in printed and "fits" in printed
    assert figures["cost"] == pytest.approx(1.2 * figures["chip_hours"])
    assert figures["chip_hours"] == pytest.approx(figures["steps"] * figures["step_s"] * 4 / 3600)
    assert figures["step_s"] == pytest.approx(sum(figures["seconds"].values()))


@pytest.mark.parametrize("topology, compiler", [("v5e:2x2", "TPU"), ("h100:1", "CUDA")])
def test_where_the_compiler_is_not_installed_the_plan_says_so(monkeypatch, capsys, topology, compiler):
    monkeypatch.setattr("jaxgrpo.plan.compiled.is_available", lambda chip: False)
    assert main(["plan", "configs/qwen2.5-0.5b.yaml", "model=random:qwen2.5-0.5b", "--topology", topology]) == 0
    assert f"the {compiler} compiler is not installed (pip install" in capsys.readouterr().out


def test_a_run_that_does_not_fit_fails_with_the_remedy(capsys):
    arguments = ["plan", "configs/qwen2.5-7b.yaml", "model=random:qwen2.5-7b", "--topology", "v5e:4x4", "--no-compile"]
    assert main(arguments) == 1
    assert re.search(r"update needs \d+\.\d+ GiB of a chip that gives 15\.75\. It would fit with mesh", capsys.readouterr().err)


@pytest.mark.parametrize("option", ["--prompt-len", "--response-len"])
@pytest.mark.parametrize("tokens", ["-100", "0", "100000"])
def test_mean_lengths_that_cannot_be_are_refused_by_name(option, tokens, capsys):
    arguments = ["plan", "configs/qwen2.5-0.5b.yaml", "model=random:qwen2.5-0.5b", "--topology", "v5e:2x2", "--no-compile"]
    assert main([*arguments, option, tokens]) == 2
    assert f"{option} {tokens}: a mean of 1 to" in capsys.readouterr().err


def test_the_assumed_lengths_stay_within_the_limits_of_the_config_and_no_price_is_no_cost(tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", "configs/qwen2.5-0.5b.yaml", "model=random:qwen2.5-0.5b", "--topology", "v5e:2x2", "--no-compile"]
    assert main([*arguments, "rollout.max_new_tokens=64", "--json", str(out)]) == 0
    assert "assuming 100 + 64 tokens" in capsys.readouterr().out
    assert json.loads(out.read_text())["cost"] is None


def test_equal_lengths_take_what_their_number_says():
    lengths = np.full((64, 8), 100)
    phases = scale.Phases(token_s=0.01, slots=32, update_host_s=40.0, fixed_s=1.0)
    for hosts in (1, 2, 4, 8):
        step = scale.synchronous(lengths, hosts, phases)
        rounds = np.ceil(512 / hosts / 32)
        assert step.rollout_s == pytest.approx(rounds * 1.0)
        assert step.step_s == pytest.approx(rounds + 40 / hosts + 1)
        assert step.idle == pytest.approx(1 - (16 + 40) / (hosts * step.step_s))


def test_a_long_response_holds_all_hosts_up_and_one_step_off_hides_the_update():
    lengths = np.full((64, 8), 100)
    lengths[3, 3] = 4000
    phases = scale.Phases(token_s=0.01, slots=64, update_host_s=160.0, fixed_s=0.0)
    together, apart = scale.synchronous(lengths, 8, phases), scale.one_step_off(lengths, 8, phases)
    assert together.rollout_s >= 40 and together.step_s >= 60
    assert apart.step_s == pytest.approx(max(40.0, apart.step_s)) and apart.step_s < together.step_s
    assert 0 <= apart.idle < together.idle < 1


def test_the_simulation_agrees_with_the_scheduler_of_the_engine_on_random_lengths():
    """Against a plain event loop: at every token each busy slot makes one, and ended ones take the next sequence."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths, slots = rng.integers(1, 30, rng.integers(1, 60)), int(rng.integers(1, 8))
        waiting, busy, tokens = list(lengths), [], 0
        while waiting or busy:
            while waiting and len(busy) < slots:
                busy.append(waiting.pop(0))
            busy = [left - 1 for left in busy if left > 1]
            tokens += 1
        assert scale._host_seconds(lengths, scale.Phases(1.0, slots, 0, 0)) == tokens


@pytest.fixture
def scaled_run(tmp_path):
    run = tmp_path / "run"
    (run / "eval").mkdir(parents=True)
    config = {"rollout": {"samples": 4, "slots": 16}, "data": {"prompts_per_step": 32}}
    (run / "config.yaml").write_text(json.dumps(config))
    steps = [{"step": s, "rollout_s": 2.0, "update_s": 3.0, "score_s": 1.0, "sync_s": 0.1, "other_s": 0.2} for s in range(1, 5)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    rows = [{"question": q, "sample": 0, "tokens": 10 + q} for q in range(20)]
    (run / "eval" / "heldout-4.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_scale_is_drawn_from_a_run(scaled_run, tmp_path, capsys):
    lengths, phases = scale.measured(str(scaled_run))
    one = scale.synchronous(lengths, 1, phases)
    assert one.rollout_s == pytest.approx(2.0) and one.step_s == pytest.approx(2.0 + 4.0 + 0.3)
    assert scale.main([str(scaled_run), str(tmp_path / "scale.png")]) == 0
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("%") == 2 * len(scale.HOSTS)
    assert Path(tmp_path / "scale.pdf").exists()


def test_a_run_directory_alone_is_read_and_keeps_its_picture_inside(scaled_run, capsys):
    assert scale.main([str(scaled_run)]) == 0
    printed = capsys.readouterr().out
    assert "128 responses" in printed and "16 slots" in printed  # 32 x 4, of the run's config
    assert "chips" not in printed and "machines" in printed  # nobody said that the run had four chips
    assert not scaled_run.with_suffix(".png").exists() and (scaled_run / "plots" / "scale.png").exists()


def test_without_arguments_the_plan_is_printed_and_nothing_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scale, "HOSTS", (2, 8))
    monkeypatch.chdir(tmp_path)
    assert scale.main([]) == 0
    assert "4,096 responses" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_what_is_neither_a_run_nor_a_picture_is_refused(scaled_run, tmp_path, capsys):
    for arguments in ([str(tmp_path / "nowhere")], [str(tmp_path)], ["out.txt"], ["a.png", "b.png"]):
        with pytest.raises(SystemExit) as stop:
            scale.main(arguments)
        assert stop.value.code == 2
    (scaled_run / "eval" / "heldout-4.jsonl").unlink()
    assert scale.main([str(scaled_run)]) == 1
    assert "no evaluation" in capsys.readouterr().err
    (scaled_run / "config.yaml").unlink()
    assert scale.main([str(scaled_run)]) == 1
    assert "no run directory that can be read" in capsys.readouterr().err
