"""What stays fixed through a run: model, data, mesh, engine, graders and the compiled programs."""

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from eval.run import Questions
from eval.sampling import Outcome, as_message, dealt_together, from_message, outcomes, pass_at_1, sample_and_grade
from jaxgrpo.config import Config, ConfigError, replace
from jaxgrpo.data import DATA_SOURCE, EncodedPrompt, load_demonstrations, load_tokenizer, unknown_ids
from jaxgrpo.model.family import Family, model_family
from jaxgrpo.model.hf import load_params
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.model.source import ModelSource, resolve_model
from jaxgrpo.parallel import hosts
from jaxgrpo.parallel.mesh import hosts_mesh, rollout_mesh, trainer_mesh
from jaxgrpo.reward import GraderPool
from jaxgrpo.rollout import scheduler
from jaxgrpo.rollout.driver_process import DriverProcess
from jaxgrpo.rollout.engine import Engine
from jaxgrpo.rollout.jetstream_package import require_jetstream
from jaxgrpo.rollout.sampling import Sampling
from jaxgrpo.train.accounting import FlopCounter, peak_flops
from jaxgrpo.train.conversion import is_converted, load_converted
from jaxgrpo.train.dataset import TrainingPrompts, asks_for_code, check_local_files, heldout_prompts, suite_questions
from jaxgrpo.train.fingerprints import demonstrations_digest, digest, tokenizer_digest, weights_digest
from jaxgrpo.train.optimizer import make_optimizer
from jaxgrpo.train.rows import Rows, RowShape, Sequence, pack, pack_tightest
from jaxgrpo.train.sizes import device_memory, engine_settings, resolve_sizes, row_shapes
from jaxgrpo.train.state import TrainState, abstract_params, abstract_state, init_state, parameter_shardings
from jaxgrpo.train.step import make_score, make_update, rows_sharding

SUITE = "heldout"


@dataclass
class Job:
    """A prepared run. `config` has no automatic values left."""

    config: Config
    source: ModelSource
    tokenizer: object
    stop_ids: tuple[int, ...]
    pad_id: int
    prompts: TrainingPrompts
    heldout: list[EncodedPrompt]
    heldout_dropped: int
    suites: dict[str, list[EncodedPrompt]]  # of eval.suites
    inputs: dict[str, dict]  # name and digest of what the run reads, but for the weights
    mesh: jax.sharding.Mesh
    engine: Engine
    pool: GraderPool
    driver: DriverProcess | None  # with rollout.driver=jetstream
    family: Family  # without a name where a run's origin is still to tell it
    tell: Callable[[int, int, str], None] = lambda done, total, of: None  # hears of every response of `sample` that ends
    origin: dict | None = None  # of a run that began from another's checkpoint, see origin.py

    @property
    def model(self):
        return self.source.config

    @property
    def platform(self) -> str:
        return self.mesh.devices.flat[0].platform

    @property
    def sandbox(self) -> str | None:
        """The level at which the model's code is run; None where no problem asks for code."""
        code = any(map(asks_for_code, (self.prompts.of_file, self.heldout, *self.suites.values())))
        return self.config.reward.sandbox if code else None

    @property
    def turn_end(self) -> int:
        """The token that ends a demonstrated response: the chat template's own where it is a stop token."""
        own = self.tokenizer.eos_token_id
        return own if own in self.stop_ids else self.stop_ids[0]

    @cached_property
    def optimizer(self):
        return make_optimizer(self.config.optim)

    @cached_property
    def score(self) -> Callable:
        return make_score(self.model, self.config.train, self.config.rollout.temperature, self.mesh)

    @cached_property
    def update(self) -> Callable:
        c = self.config
        return make_update(self.model, c.train, c.algo, c.rollout.temperature, c.optim.clip_norm, self.optimizer, self.mesh)

    @cached_property
    def row_shapes(self) -> list[RowShape]:
        """What minibatches are packed into."""
        c = self.config
        return row_shapes(c, c.train.minibatch_prompts * c.rollout.samples, self.platform)

    @cached_property
    def flops(self) -> FlopCounter:
        return FlopCounter.of(self.model)

    @cached_property
    def peak_flops(self) -> float:
        return peak_flops(self.mesh.devices.flatten())

    @cached_property
    def identity(self) -> dict:
        """The keys of every metrics line that say which model this is."""
        counts = count_parameters(self.model)
        identity = {
            "model_family": self.config.family,
            "n_params": counts["total"],
            "n_params_non_embedding": counts["non_embedding"],
            "n_params_total": counts["total"],
            "n_nominal": nominal_size(self.source.name, counts["total"]),
        }
        if self.origin and self.origin["n_nominal"]:
            identity["n_nominal"] = self.origin["n_nominal"]
        return identity | ({"reuse_factor": self.config.data.epochs} if self.prompts.of_file else {})

    def initial_params(self) -> dict[str, jax.Array]:
        """The float32 parameters that the run starts from, on the trainer's mesh."""
        if is_converted(self.source.name):
            return load_converted(self.source, self.abstract_params())
        return load_params(self.source, dtype=jnp.float32, mesh=self.mesh, seed=self.config.seed)

    def weights_input(self, params: dict[str, jax.Array] | None) -> dict:
        """What the run's history says of the weights it starts from, which are `params` unless they are random."""
        architecture = digest(json.dumps(dataclasses.asdict(self.model), sort_keys=True))
        content = digest(architecture, str(self.config.seed)) if self.source.random else weights_digest(params)
        about = {"name": self.source.name, "digest": content, "architecture": architecture}
        return about | ({"revision": self.source.revision} if self.source.revision else {})

    def abstract_params(self) -> dict:
        return abstract_params(self.model, parameter_shardings(self.model, self.mesh))

    def abstract_state(self) -> TrainState:
        return abstract_state(self.model, self.optimizer, self.mesh, self.config.train.offload != "none")

    def fresh_state(self, params: dict) -> TrainState:
        return init_state(params, self.model, self.optimizer, self.mesh, self.config.train.offload != "none")

    def pack_minibatch(self, sequences: list[Sequence]) -> tuple[Rows, np.int32]:
        """Rows on the devices and the number of micro-batches in use."""
        rows, used = pack_tightest(sequences, self.row_shapes, self.pad_id)
        return hosts.spread(rows, rows_sharding(self.mesh)), np.int32(used)

    def compile_updates(self, reference: dict | None) -> None:
        """Build the programs of every row shape into the compilation cache, largest first, so that no step waits for one later.

        Where there is one shape, the first step builds it."""
        if len(self.row_shapes) == 1:
            return
        sharding = rows_sharding(self.mesh)
        for shape in self.row_shapes:
            rows = jax.tree.map(
                lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), pack([], shape, self.pad_id)[0]
            )
            logp, used = rows.behaviour_logp, np.int32(0)
            self.update.lower(self.abstract_state(), rows, logp, reference and logp, used).compile()
            self.score.lower(self.abstract_params(), rows, used).compile()
            if reference:
                self.score.lower(reference, rows, used).compile()

    def sample(self, weights, prompts: list[EncodedPrompt], *, stream: str, step: int, samples: int, sampling: Sampling):
        """Sampled and graded responses of `prompts`; see eval.sampling.sample_and_grade. Every host makes those of its share of
        the prompts, and all hosts get all of them."""
        share = prompts[hosts.index() :: hosts.count()]
        make, total = self.driver.generate if self.driver else scheduler.generate, samples * len(share)

        def generate(*given, on_finish):
            ended = itertools.count(1)

            def finish(response):
                self.tell(next(ended), total, "responses")
                on_finish(response)

            self.tell(0, total, "responses")
            return make(*given, on_finish=finish)

        mine = sample_and_grade(
            self.engine,
            weights,
            share,
            tokenizer=self.tokenizer,
            pool=self.pool,
            stream=stream,
            seed=self.config.seed,
            step=step,
            samples=[range(samples)] * len(share),
            sampling=sampling,
            max_new=self.config.rollout.max_new_tokens,
            generate=generate,
        )
        if hosts.count() == 1:
            return dealt_together([mine])
        everyone = hosts.gather(as_message(mine), f"the responses of all hosts ({stream}, step {step})")
        return dealt_together([from_message(message) for message in everyone])

    def evaluate(self, weights, step: int, stream: str = SUITE) -> list[Outcome]:
        """Outcomes on the suite that `stream` names, or for any other stream on the held-out problems."""
        c, prompts = self.config.eval, self.suites.get(stream, self.heldout)
        graded = self.sample(weights, prompts, stream=stream, step=step, samples=c.samples, sampling=Sampling(c.temperature))
        return outcomes(prompts, graded, self.tokenizer)

    def pass_at_1(self, params: dict, step: int, stream: str) -> float:
        return pass_at_1(self.evaluate(self.engine.load_params(params), step, stream))


def nominal_size(name: str, count: int) -> int:
    """The size in the model's own name (the last part of its path), `Qwen2.5-0.5B` -> 500,000,000; else the exact count.

    A figure that is not near the exact count is something else, such as the digits of a revision.
    """
    match = re.search(r"(?:^|[-_.])(\d+(?:\.\d+)?)[bB](?:$|[-_.])", Path(name.partition("@")[0]).name)
    size = int(float(match[1]) * 1e9) if match else count
    return size if 0.5 * count <= size <= 1.5 * count else count


def tokenizer_name(config: Config, source: ModelSource) -> str:
    """Which tokenizer the run uses: the configured one, the model's own, or the built-in task's."""
    if config.data.tokenizer:
        return config.data.tokenizer
    if source.path is not None:
        return str(source.path)
    if config.data.train == DATA_SOURCE:
        return DATA_SOURCE
    raise ConfigError(f"model={config.model} comes without a tokenizer: set data.tokenizer to a directory or hub id.")


def data_inputs(config: Config, prompts: TrainingPrompts, heldout: Questions, suites: list[Questions]) -> dict[str, dict]:
    """Name and digest of the data that a run reads."""
    found = {
        "data.train": {"name": config.data.train, "digest": prompts.digest},
        "data.test": {"name": config.data.test, "digest": heldout.digest},
    }
    if demonstrations := config.warmup.demonstrations:
        content = demonstrations_digest(load_demonstrations(demonstrations))
        found["warmup.demonstrations"] = {"name": demonstrations, "digest": content}
    return found | {f"eval.suites.{asked.name}": {"name": asked.name, "digest": asked.digest} for asked in suites}


def prepare(config: Config, source: ModelSource | None = None) -> Job:
    """Resolve every automatic value, load data and tokenizer, lay out meshes, start graders. Nothing is compiled yet.

    source: the model, where it is not to be looked for under config.model."""
    check_local_files(config)
    if config.rollout.driver == "jetstream":
        require_jetstream("rollout.driver=jetstream")
    source = source or resolve_model(config.model, need_weights=not is_converted(config.model))
    name = tokenizer_name(config, source)
    tokenizer = load_tokenizer(name)
    if len(tokenizer) > source.config.vocab:
        raise ConfigError(
            f"the tokenizer {name} has {len(tokenizer)} tokens, the model {config.model} a vocabulary of "
            f"{source.config.vocab}: set data.tokenizer to the model's own."
        )
    if config.warmup.steps and not config.warmup.demonstrations and config.data.train != DATA_SOURCE:
        raise ConfigError("warmup.steps is set without warmup.demonstrations: name a file with prompt and response.")
    stop_ids = source.stop_ids if source.path is not None else ()
    stop_ids = stop_ids or ((tokenizer.eos_token_id,) if tokenizer.eos_token_id is not None else ())
    if config.warmup.steps and not stop_ids:
        raise ConfigError(f"model={config.model} names no end-of-sequence token, which demonstrations need.")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    if hosts.count() > 1 and config.rollout.driver == "jetstream":
        raise ConfigError("rollout.driver=jetstream serves one host; leave it at engine in a job of several.")
    prompts = TrainingPrompts(config, tokenizer)
    heldout = heldout_prompts(config, tokenizer)
    suites = suite_questions(config.eval.suites, config, tokenizer)
    inputs = data_inputs(config, prompts, heldout, suites) | {
        "data.tokenizer": {"name": name, "digest": tokenizer_digest(tokenizer)}
    }
    devices = jax.devices()
    family = Family(config.family) if config.family or source.steps else model_family(source)
    config = replace(config, {"family": family.name, "train.steps": prompts.steps()})
    if config.train.profile > config.train.steps:
        raise ConfigError(f"train.profile={config.train.profile} is beyond the last step, train.steps={config.train.steps}.")
    config = resolve_sizes(config, source.config, len(devices), device_memory(jax.local_devices()[0]), hosts.count())
    mesh = trainer_mesh((config.mesh.data, config.mesh.fsdp, config.mesh.tensor), devices)
    tensor = config.rollout.tensor
    settings = engine_settings(config, stop_ids, pad_id, unknown_ids(tokenizer, source.config.vocab))
    engine = Engine(
        source.config,
        dataclasses.replace(settings, slots=settings.slots // hosts.count()),
        rollout_mesh(mesh, tensor),
        tokenizer=tokenizer,
        hosts_mesh=hosts_mesh(mesh, tensor) if hosts.count() > 1 else None,
    )
    reward = config.reward
    pool = GraderPool(reward.workers, reward.cpu_seconds, reward.wall_seconds, sandbox=reward.sandbox)
    driver = DriverProcess() if config.rollout.driver == "jetstream" else None
    of_suites = {asked.name: asked.prompts for asked in suites}
    known = heldout.prompts, heldout.overlong, of_suites, inputs
    return Job(config, source, tokenizer, stop_ids, pad_id, prompts, *known, mesh, engine, pool, driver, family)
