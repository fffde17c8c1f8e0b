"""`jaxgrpo plan CONFIG --topology v5p:4x4x8`: whether a run fits a slice, and what it would take there."""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from jaxgrpo.config import Config, ConfigError, flatten, load_config, replace
from jaxgrpo.errors import UserError
from jaxgrpo.model.config import ModelConfig
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.model.source import resolve_model
from jaxgrpo.parallel.mesh import MeshError
from jaxgrpo.plan import compiled
from jaxgrpo.plan.memory import PHASES, Memory, memory, resolved
from jaxgrpo.plan.timing import Assumptions, phase_seconds
from jaxgrpo.plan.topology import Topology, parse_topology
from jaxgrpo.train.sizes import GIB
from jaxgrpo.whole_file import write_whole
from scaling.tables import table

PAPER_STEPS = 100  # of the paper's 51,200 prompts, where neither train.steps nor a file says how many
ROW_TOKENS = (6144, 8192, 12288, 16384)
SUGGESTIONS = 5


class DoesNotFit(UserError):
    """The run does not fit the topology; the message says what to change."""


@dataclass(frozen=True)
class Plan:
    """A resolved config on a topology: memory by model, seconds by phase."""

    config: Config
    model: ModelConfig
    topology: Topology
    memory: Memory
    seconds: dict[str, float]

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def fits(self) -> bool:
        return all(self.memory.peak(phase) <= self.topology.memory for phase in PHASES)

    def tokens_per_s(self, a: Assumptions) -> float:
        c = self.config
        return c.data.prompts_per_step * c.rollout.samples * (a.prompt + a.response) / self.step_s

    @property
    def steps(self) -> int:
        return self.config.train.steps or PAPER_STEPS

    @property
    def chip_hours(self) -> float:
        return self.steps * self.step_s * self.topology.chips / 3600


def make_plan(config: Config, model: ModelConfig, topology: Topology, assumptions: Assumptions) -> Plan:
    """ConfigError or MeshError where the sizes do not go together or state and weights alone exceed a chip."""
    config = resolved(config, model, topology)
    return Plan(config, model, topology, memory(config, model, topology), phase_seconds(config, model, topology, assumptions))


def suggest(config: Config, model: ModelConfig, topology: Topology, assumptions: Assumptions) -> list[Plan]:
    """Plans that fit, over the mesh and `train.row_tokens`, the fastest first. On several machines of GPUs the state may lie
    once on all of them or once on each (`mesh.data`)."""
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    plans = []
    copies = {1} if topology.chip.is_tpu else {1, topology.hosts}
    for tensor, data in itertools.product((1, 2, 4, 8), sorted(copies)):
        if model.heads % tensor or topology.chips % (tensor * data) or tensor > topology.chip.per_host * 2:
            continue
        for tokens in sorted({max(tokens, -(-longest // 128) * 128) for tokens in ROW_TOKENS}):
            changes = {"mesh.data": data, "mesh.fsdp": 0, "mesh.tensor": tensor, "train.row_tokens": tokens}
            try:
                plan = make_plan(replace(config, changes), model, topology, assumptions)
            except (ConfigError, MeshError):
                continue
            if plan.fits:
                plans.append(plan)
    return sorted(plans, key=lambda plan: (round(plan.step_s, 2), plan.config.mesh.tensor, plan.config.train.row_tokens))


def remedy(config: Config, model: ModelConfig, topology: Topology, assumptions: Assumptions) -> str | None:
    """The smallest change after which the run fits, as arguments to add: another mesh, what costs little, or a larger slice."""
    tries = [
        {},
        {"optim.moments_dtype": "bfloat16"},
        {"rollout.weights": "int8", "algo.tis_cap": 2.0},
        {"optim.moments_dtype": "bfloat16", "rollout.weights": "int8", "algo.tis_cap": 2.0},
    ]
    for place in (topology, *topology.larger()):
        for changes in tries:
            found = suggest(replace(config, changes), model, place, assumptions)
            if found:
                other = [] if place == topology else [f"--topology {place.name}"]
                mesh = found[0].config.mesh
                changes |= {f"mesh.{axis}": size for axis, size in asdict(mesh).items() if axis != "data" or size > 1}
                changes |= {
                    "train.row_tokens": found[0].config.train.row_tokens,
                }
                return " ".join([*other, *(f"{key}={value}" for key, value in changes.items())])
    return None


def run_plan(path: str, overrides: list[str], topology: str, options) -> None:
    """Print the plan. DoesNotFit, after all of it, where a phase exceeds a chip's memory."""
    config = load_config(path, overrides)
    model = resolve_model(config.model, need_weights=False).config
    place = parse_topology(topology)
    assumptions = Assumptions(
        prompt=_mean_length("--prompt-len", options.prompt_len, Assumptions.prompt, config, "data.max_prompt_tokens"),
        response=_mean_length("--response-len", options.response_len, Assumptions.response, config, "rollout.max_new_tokens"),
    )
    console = Console(highlight=False, soft_wrap=True)

    def say(text: str = "") -> None:
        console.print(text, markup=False)

    size = count_parameters(model)["total"]
    chips, hosts = (f"{n} {what}{'' if n == 1 else 's'}" for n, what in ((place.chips, "chip"), (place.hosts, "host")))
    say(f"plan      {config.model} ({size / 1e9:.3g} B parameters) on {place.name}: {chips}, {hosts}")
    if options.suggest:
        found = suggest(config, model, place, assumptions)
        if not found:
            raise DoesNotFit(_no_fit(config, model, place, assumptions))
        say(_suggestions(found, assumptions))
        say("\nThe best of them:")
        plan = found[0]
    else:
        try:
            plan = make_plan(config, model, place, assumptions)
        except ConfigError as error:
            raise DoesNotFit(f"{error} " + _no_fit(config, model, place, assumptions)) from None
    measured = CompilerFigures({}, {})
    if not options.no_compile and compiled.is_available(place.chip):
        say("compiling for these chips, some minutes (--no-compile does without) ...")
        measured = compiler_figures(plan)
    elif not options.no_compile:
        maker, extra = ("TPU", "tpu") if place.chip.is_tpu else ("CUDA", "cuda")
        say(f"the {maker} compiler is not installed (pip install '.[{extra}]' in the clone): figures by model only")
    say(_described(plan, measured, assumptions))
    if options.json:
        write_whole(Path(options.json), json.dumps(as_json(plan, measured, assumptions), indent=2) + "\n")
    peaks = {phase: plan.memory.peak(phase) for phase in PHASES} | measured.peaks
    if max(peaks.values()) > place.memory:
        worst = max(peaks, key=peaks.get)
        raise DoesNotFit(
            f"{worst} needs {peaks[worst] / GIB:.2f} GiB of a chip that gives {place.chip.memory_gib:g}. "
            + _no_fit(config, model, place, assumptions)
        )
    say(f"\nfits      in {place.chip.memory_gib:g} GiB a chip, with {(place.memory - max(peaks.values())) / GIB:.2f} to spare")


def _mean_length(option: str, given: int | None, default: int, config: Config, limit_key: str) -> int:
    """The mean tokens of a prompt or response: as given, else the default, no more than the config allows. ConfigError for a
    mean that cannot be."""
    limit = flatten(config)[limit_key]
    if given is None:
        return min(default, limit)
    if not 1 <= given <= limit:
        raise ConfigError(f"{option} {given}: a mean of 1 to {limit_key}={limit} tokens is possible.")
    return given


@dataclass(frozen=True)
class CompilerFigures:
    """Bytes per chip as the compiler's memory analysis has them: at the worst moment of each phase, and as `Memory` has them
    the temporaries. Empty where no compiler was asked."""

    peaks: dict[str, int]
    temporaries: dict[str, int]


def compiler_figures(plan: Plan) -> CompilerFigures:
    """Compile the programs of every phase."""
    held, topology, chip = plan.memory.table, plan.topology, plan.topology.chip
    programs = {
        name: compiled.bytes_of(function, arguments, chip)
        for name, function, arguments in compiled.training_programs(plan.config, plan.model, topology)
    }
    rollout = compiled.largest_rollout_programs(compiled.rollout_engine(plan.config, plan.model, topology.one_host()), chip)
    sync = compiled.bytes_of(*compiled.handover_program(plan.config, plan.model, topology), chip)
    sync_peak = compiled.program_bytes(sync) + held["optimiser"] + held["reference"]
    peaks = compiled.training_peaks(programs, held) | {"rollout": compiled.rollout_peak(rollout, held), "sync": sync_peak}
    temporaries = {name: program["temporaries"] for name, program in programs.items()}
    return CompilerFigures(peaks, temporaries | {"rollout": compiled.rollout_temporaries(rollout)})


def _no_fit(config: Config, model: ModelConfig, topology: Topology, assumptions: Assumptions) -> str:
    change = remedy(config, model, topology, assumptions)
    return f"It would fit with {change}." if change else f"No slice of {topology.chip.name} that is known here holds it."


def _suggestions(plans: list[Plan], a: Assumptions) -> str:
    rows = [
        [
            " ".join(f"mesh.{axis}={size}" for axis, size in asdict(p.config.mesh).items()),
            f"{p.config.train.row_tokens:,}",
            f"{p.step_s:.1f}",
            f"{p.tokens_per_s(a):,.0f}",
            f"{max(p.memory.peak(phase) for phase in PHASES) / GIB:.2f}",
        ]
        for p in plans[:SUGGESTIONS]
    ]
    return table(["mesh", "train.row_tokens", "s/step", "tokens/s", "GiB a chip"], rows)


def _described(plan: Plan, measured: CompilerFigures, a: Assumptions) -> str:
    c, place = plan.config, plan.topology
    replicas = place.chips // c.rollout.tensor
    lines = [
        f"mesh      data {c.mesh.data} x fsdp {c.mesh.fsdp} x tensor {c.mesh.tensor}, rows of {c.train.row_tokens:,} tokens; "
        f"rollouts on {replicas} replicas x tensor {c.rollout.tensor}, {c.rollout.slots:,} slots",
        "",
        table(["kind", "GiB a chip"], [[kind, f"{size / GIB:.3f}"] for kind, size in plan.memory.table.items()]),
        "",
    ]
    rows = []
    for phase in PHASES:
        compiler = f"{measured.peaks[phase] / GIB:.2f}" if phase in measured.peaks else "-"
        rows.append(
            [
                phase,
                f"{plan.memory.temporaries[phase] / GIB:.2f}",
                f"{plan.memory.peak(phase) / GIB:.2f}",
                compiler,
                f"{place.chip.memory_gib:g}",
            ]
        )
    if "sync" in measured.peaks:  # the sampler's weights are made beside the trainer's
        rows.append(["sync", "-", "-", f"{measured.peaks['sync'] / GIB:.2f}", f"{place.chip.memory_gib:g}"])
    lines += [table(["phase", "temporaries", "peak, by model", "peak, by the compiler", "of GiB"], rows), ""]
    rows = [[phase, f"{s:.1f}", f"{s / plan.step_s:.0%}"] for phase, s in plan.seconds.items()]
    lines += [table(["phase", "seconds", "share"], rows), ""]
    lines.append(
        f"speed     {plan.step_s:.1f} s a step, {plan.tokens_per_s(a):,.0f} tokens/s, {3600 / plan.step_s:.1f} steps an hour, "
        f"assuming {a.prompt} + {a.response:,} tokens, {a.compute:.0%} of a chip's bfloat16 rate and {a.bandwidth:.0%} of its "
        "bytes/s"
    )
    origin = "train.steps" if c.train.steps else "as the paper's; set train.steps"
    cost = f", {plan.chip_hours * c.plan.chip_hour_price:,.0f} at {c.plan.chip_hour_price:g} a chip-hour"
    if not c.plan.chip_hour_price:
        cost = "; plan.chip_hour_price=PRICE gives the cost"
    hours = plan.steps * plan.step_s / 3600
    lines.append(f"run       {plan.steps} steps ({origin}): {hours:.1f} h, {plan.chip_hours:,.0f} chip-hours{cost}")
    return "\n".join(lines)


def as_json(plan: Plan, measured: CompilerFigures, a: Assumptions) -> dict:
    """What is printed, unrounded."""
    return {
        "topology": plan.topology.name,
        "chips": plan.topology.chips,
        "mesh": asdict(plan.config.mesh),
        "row_tokens": plan.config.train.row_tokens,
        "bytes_per_chip": plan.memory.table,
        "temporaries": plan.memory.temporaries,
        "peaks": {phase: plan.memory.peak(phase) for phase in PHASES},
        "compiler_peaks": measured.peaks,
        "compiler_temporaries": measured.temporaries,
        "memory": plan.topology.memory,
        "seconds": plan.seconds,
        "step_s": plan.step_s,
        "tokens_per_s": plan.tokens_per_s(a),
        "steps": plan.steps,
        "chip_hours": plan.chip_hours,
        "cost": plan.chip_hours * plan.config.plan.chip_hour_price or None,
        "assumptions": asdict(a),
    }
