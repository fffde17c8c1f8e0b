"""The training loop: rollout, reward, advantages, minibatch updates, evaluation, metrics, checkpoint.

Everything a step does is a function of (config, state, step), and everything it leaves behind is written in the order metrics,
evaluation, checkpoint. A run that is killed anywhere goes on from its last complete checkpoint and repeats the same steps.
"""

import dataclasses
import signal
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from eval.sampling import Graded, pass_at_1, write_records
from jaxgrpo import interruption
from jaxgrpo.algo import group_advantages
from jaxgrpo.config import Config, ConfigError, replace
from jaxgrpo.errors import UserError
from jaxgrpo.parallel import hosts
from jaxgrpo.train.checkpoint import Checkpoints
from jaxgrpo.train.history import changed_after
from jaxgrpo.train.job import SUITE, Job, prepare
from jaxgrpo.train.measures import Totals, Work, logprob_difference, rollout_metrics, update_metrics
from jaxgrpo.train.metrics import PHASES, CompilationCounter, with_checksum
from jaxgrpo.train.origin import IDENTITY, own_source, pinned
from jaxgrpo.train.plots import draw_learning_curve
from jaxgrpo.train.progress import Progress
from jaxgrpo.train.resume import continued, find_changes, refuse
from jaxgrpo.train.rows import Rows, Sequence
from jaxgrpo.train.run import RunDirectory
from jaxgrpo.train.sizes import config_sampling
from jaxgrpo.train.start import Start
from jaxgrpo.train.state import TrainState, cast_params
from jaxgrpo.train.step import ON_POLICY
from jaxgrpo.train.stored import Stored, as_message, from_message
from jaxgrpo.train.watch import EQUAL, RewardWatch

_TITLES = {
    "score_s": "scoring",
    "update_s": "update",
    "sync_s": "hand-over of the weights",
    "eval_s": "evaluation",
    "save_s": "saving",
}


class Stopped(UserError):
    """The run was asked to end before its last step, and saved what it had."""

    on_all_hosts = True
    exit_code = 75  # "try again later", EX_TEMPFAIL of sysexits.h: launchers start the job again


def train(config: Config, given: set[str] | None = None) -> None:
    """Run, or go on with, the training that `config` describes. In a job of several hosts every host calls this; the first one
    writes what the run leaves behind.

    given: the keys that somebody has set, None for all; a resumed run keeps its own values of others that may change.
    """
    compilations = CompilationCounter()
    hosts.check_same(config)
    run = RunDirectory(config.run_dir)
    if hosts.is_first():
        run.lock()
    progress = Progress(run)
    with interruption.undone(run.leave), interruption.looking_ahead(run.outlook), progress.activity:
        _train(config, run, compilations, progress, given)


def _train(
    config: Config, run: RunDirectory, compilations: CompilationCounter, progress: Progress, given: set[str] | None
) -> None:
    hosts.check_shared(run.path, run.LOCK)
    found = hosts.from_first(as_message(run.stored()) if hosts.is_first() else None, "what the run directory holds")
    stored = from_message(found)
    stored = with_family(run, stored)
    accept, config = config.checkpoint.accept_changes, replace(config, {"checkpoint.accept_changes": False})
    config, told = pinned(config, stored)
    if stored is not None:
        config, kept = continued(config, stored, given, len(jax.devices()))
        told += [f"resumed   {text} as before: neither the command nor CONFIG sets it" for text in kept]
        told += [f"resumed   {note}" for note in stored.notes]
        refuse(find_changes(config, {}, stored), stored, config.run_dir, accept)
    own = own_source(run.path, stored, config)
    with progress.doing("reading the model's files and the data"):
        job = prepare(config, own)
    if own:
        job.origin = stored.origin
    with job.pool, job.driver or nullcontext():
        check_same_inputs(job.inputs)
        metric = config.checkpoint.metric
        if config.checkpoint.best and metric.startswith("suite_") and metric.removeprefix("suite_") not in job.suites:
            raise ConfigError(f"checkpoint.metric={metric} is of no suite here: there are {', '.join(job.suites)}.")
        trainer = Trainer(job, run, compilations, progress, stored, accept)
        for text in told:
            progress.say(text)
        trainer.run_all()


def with_family(run: RunDirectory, stored: Stored | None) -> Stored | None:
    """`stored` with the family that the lines of metrics carry where its config, made before that was a key, names none."""
    if stored is None or stored.config.family:
        return stored
    recorded = hosts.from_first(run.recorded_family() if hosts.is_first() else None, "the family of the run's metrics")
    if not recorded:
        return stored
    note = f"family {recorded}, as its metrics say, from when the model's name alone told it: it goes on under that"
    return dataclasses.replace(stored, config=replace(stored.config, {"family": recorded}), notes=(*stored.notes, note))


def check_same_inputs(inputs: dict[str, dict]) -> None:
    """DisagreementError where the hosts of a job read other data or another tokenizer."""
    digests = {name: about["digest"] for name, about in inputs.items()}
    for host, theirs in enumerate(hosts.gather(digests, "the comparison of inputs")):
        changed = sorted(name for name in digests if theirs.get(name) != digests[name])
        if changed:
            raise hosts.DisagreementError(
                f"{changed[0]} of host {host} has other content than on host {hosts.index()}: copy one to all."
            )


class Trainer:
    def __init__(
        self,
        job: Job,
        run: RunDirectory,
        compilations: CompilationCounter,
        progress: Progress,
        stored: Stored | None,
        accept_changes: bool,
    ):
        self.job, self.run, self.compilations, self.progress = job, run, compilations, progress
        self.beginning = Start(job, run, progress, stored, accept_changes)
        job.tell = progress.activity.count
        self.watch = RewardWatch(job.config.reward, self.progress.say)
        self.checkpoints = Checkpoints(run.checkpoints, job.config.checkpoint)
        self.totals = Totals()
        self.seconds = dict.fromkeys(PHASES, 0.0)  # since the last line of metrics
        self.line_at = time.perf_counter()  # when that was written
        self.micro_batches = 0  # of the last step's updates
        self.weights = None  # the sampler's copy of the policy; dropped during updates
        self.measured: dict = {}  # metrics of the last step
        self.stop_request = hosts.StopRequest(self.tell_of_stop)
        self.current = 0  # the step that is under way

    @property
    def config(self) -> Config:
        return self.job.config

    def run_all(self) -> None:
        """Train to the end. Stopped, with everything saved, after the step in which a host was asked to end; LimitReached
        likewise after one whose rewards are past a limit."""
        steps = self.config.train.steps
        with self.stop_request.watched() if hosts.count() > 1 else nullcontext():  # one host has nothing to lose yet: it ends
            state, done = self.start()
        self.progress.begin(self.job, done, self.run.metrics.read())
        self.watch.begin(self.run.metrics.read())
        self.line_at = time.perf_counter()
        try:
            with self.stop_request.watched():
                if done == 0:
                    self.log(0, self.evaluate(state, 0))
                self.check_before(done + 1)
                for step in range(done + 1, steps + 1):
                    self.current, self.stop_request.training = step, True
                    with self.profiled(step), self.progress.doing(f"step {step}/{steps}"):
                        state = self.step(state, step)
                    asked = self.asked_to_stop(step) if step < steps else None
                    if step < steps and (asked or self.watch.past(self.measured)):
                        self.stop(state, step, asked)
                with self.timed("save_s"):
                    self.checkpoints.wait()
                best = self.checkpoints.best()
        finally:
            self.checkpoints.close()
        if hosts.is_first():
            curve = self.run.plots / "learning_curve.png"
            draw_learning_curve(
                self.run.metrics.read(), curve, title=self.config.model, changed_after=changed_after(self.run.path)
            )
        self.progress.end(self.run.metrics.read(), best if self.config.checkpoint.best else None, self.seconds["save_s"])

    def tell_of_stop(self, number: int) -> None:
        """Say at once what a request to end leads to."""
        name, step, steps = interruption.name_of(number), self.current, self.config.train.steps
        if not self.stop_request.training:
            self.progress.say(f"{name}: the run ends before its next step or part of its warm-up; {self.run.outlook()}")
        elif step < steps:
            self.progress.say(f"{name}: the run ends when step {step} is done and saved; another one ends it at once")
        else:
            self.progress.say(f"{name}: step {step} is the last, the run ends by itself; another one ends it at once")

    def check_before(self, step: int) -> None:
        """Stopped, where a host was asked to end before the first step."""
        asked = self.stop_request.anywhere()
        if asked:
            raise Stopped(f"asked to stop ({interruption.name_of(asked)}) before step {step}: {self.run.outlook()}.")

    def asked_to_stop(self, step: int) -> int | None:
        """The number of the request to end that a host got; the same answer on all. With several hosts only JAX's preemption
        service knows of a SIGTERM that came before this loop."""
        preempted = self.checkpoints.preempted(step)
        return self.stop_request.anywhere() or (signal.SIGTERM if preempted else None)

    def stop(self, state: TrainState, step: int, asked: int | None) -> NoReturn:
        """Save what is not saved yet, wait until it is on disk, and end: at a limit, or because that was `asked`."""
        if step % self.config.checkpoint.every:
            self.save(state, step)
        self.checkpoints.wait()
        saved = f"step {step} of {self.config.train.steps} is saved in {self.run.path}"
        self.watch.stop(self.measured, saved)
        raise Stopped(f"asked to stop ({interruption.name_of(asked)}): {saved}; the same command goes on from there.")

    def start(self) -> tuple[TrainState, int]:
        """The state to go on from and the steps it has behind it; the reference policy is set aside on the way."""
        steps = hosts.from_first(self.checkpoints.steps(), "the list of checkpoints")
        initial = self.beginning.initial_policy(begin=not steps, before_more=lambda: self.check_before(1))
        train = self.config.train
        with_reference = self.config.algo.kl_coef > 0
        self.reference = cast_params(initial, jnp.dtype(train.dtype), train.offload == "all") if with_reference else None
        with self.progress.doing("compiling the programs of rollouts and updates"):
            if self.job.driver is None:
                self.job.engine.compile(self.job.engine.load_params(initial))
            self.job.compile_updates(self.reference)
        for complaint in self.checkpoints.complaints:
            self.progress.say(f"WARNING   {complaint}")
        if not steps:
            return self.job.fresh_state(initial), 0
        del initial
        state, meta = self.beginning.restore_newest(self.checkpoints, steps)
        self.totals = Totals(**meta["totals"])
        self.beginning.go_on_after(self.checkpoints, meta)
        return state, meta["step"]

    def step(self, state: TrainState, step: int) -> TrainState:
        """One GRPO step: P prompts x G samples, then P / minibatch updates."""
        config = self.config
        prompts = self.job.prompts.at(step - 1)
        weights = self.sampler_weights(state)
        sampling = config_sampling(config)
        with jax.profiler.TraceAnnotation("rollout and grade"), self.progress.doing("rollouts and grading"):
            graded = self.job.sample(
                weights, prompts, stream="train", step=step, samples=config.rollout.samples, sampling=sampling
            )
        weights = self.weights = None
        self.seconds["rollout_s"], self.seconds["grade_s"] = graded.generate_s, graded.grade_s
        rewards_PG = self.rewards(graded, step)
        advantages_PG = np.asarray(
            jax.device_get(group_advantages(rewards_PG, std_normalise=config.algo.std_normalise)), np.float64
        )
        sequences = [
            [
                Sequence(prompt.tokens, np.array(r.tokens, np.int32), np.array(r.logps, np.float32), float(advantage))
                for r, advantage in zip(group, advantages, strict=True)
            ]
            for prompt, group, advantages in zip(prompts, graded.responses, advantages_PG, strict=True)
        ]
        state, measured = self.update(state, sequences)
        work = Work(
            np.array([len(p.tokens) for p in prompts]), np.array([[len(r.tokens) for r in g] for g in graded.responses])
        )
        self.totals.count(self.job, work)
        record = (
            measured
            | rollout_metrics(self.job, graded, rewards_PG, work, self.seconds, self.micro_batches)
            | {"policy_version": step - 1}
        )
        record |= self.watch.step(step, prompts, graded, self.job.tokenizer, record[EQUAL])
        last = step == config.train.steps
        record |= self.evaluate(state, step)
        self.log(step, record)
        self.measured = record
        if step % config.checkpoint.every == 0 or last:
            self.save(state, step)
        return state

    def save(self, state: TrainState, step: int) -> None:
        meta = {"step": step, "cursor": self.totals.samples, "seed": self.config.seed, "totals": asdict(self.totals)}
        meta |= {"config": asdict(self.config), "inputs": self.beginning.inputs, "origin": self.job.origin}
        meta["identity"] = {key: self.job.identity[key] for key in IDENTITY}
        with self.timed("save_s"):
            self.checkpoints.save(step, state, meta, self.measured)

    def update(self, state: TrainState, sequences: list[list[Sequence]]) -> tuple[TrainState, dict]:
        """Score the batch under the reference and, where the update cannot know it, the old policy; then update minibatch by
        minibatch."""
        per = self.config.train.minibatch_prompts
        minibatches = []
        with self.timed("score_s"):
            for first in range(0, len(sequences), per):
                rows, used = self.job.pack_minibatch([s for group in sequences[first : first + per] for s in group])
                old = self.old_logprobs(state, rows, used, first == 0)
                reference = None if self.reference is None else self.job.score(self.reference, rows, used)
                minibatches.append((rows, old, reference, used))
                jax.block_until_ready(minibatches[-2:-1])  # few in flight, see scheduler.MAX_UNREAD
            differences = [logprob_difference(rows, old) for rows, old, _, _ in minibatches[1:]]
            jax.block_until_ready((minibatches, differences))
        self.micro_batches = int(sum(used for *_, used in minibatches))
        with self.timed("update_s"):
            measured = []
            for rows, old, reference, used in minibatches:
                state, metrics = self.job.update(state, rows, old, reference, used)
                measured.append(metrics)
                self.progress.activity.count(len(measured), len(minibatches), "minibatches")
                jax.block_until_ready(measured[-2:-1])
            measured = jax.device_get(measured)
        self.totals.skipped_updates += int(sum(m["skipped_updates"] for m in measured))
        return state, update_metrics(self.config, measured, differences)

    def old_logprobs(self, state: TrainState, rows: Rows, used, on_policy: bool) -> jax.Array:
        """[M, D, C] of the policy that sampled: the first minibatch's come out of its own update."""
        if self.config.algo.old_logprobs == "rollout":
            return rows.behaviour_logp
        if on_policy:
            return jnp.full_like(rows.behaviour_logp, ON_POLICY)
        return self.job.score(state.params, rows, used)

    def sampler_weights(self, state: TrainState):
        """The policy in the rollout layout; made once per policy."""
        if self.weights is None:
            with self.timed("sync_s"):
                self.weights = jax.block_until_ready(self.job.engine.load_params(state.params))
        return self.weights

    def evaluate(self, state: TrainState, step: int) -> dict:
        """Metrics of the evaluations that are due at this step, whose outcomes are written down."""
        c, last = self.config.eval, step == self.config.train.steps
        due = [SUITE] if c.every and (step % c.every == 0 or last) else []
        due += [name for name in self.job.suites if step % c.suites_every == 0 or last]
        record = {}
        for suite in due:
            weights = self.sampler_weights(state)
            with self.timed("eval_s"):
                results = self.job.evaluate(weights, step, suite)
                if hosts.is_first():
                    write_records(self.run.eval_file(suite, step), [result.record() for result in results])
            self.totals.grader_errors += sum(r.error is not None for r in results)
            self.watch.evaluation(suite, step, results)
            if suite == SUITE:
                record |= {"test_loss": 1.0 - pass_at_1(results), "test_n": len(self.job.heldout)}
            else:
                record[f"suite_{suite}"] = pass_at_1(results)
        return record

    def rewards(self, graded: Graded, step: int) -> np.ndarray:
        """[P, G] float32. `reward.shuffle` deals them out at random over the step: a control that must not learn."""
        rewards_PG = np.array([[grade.score for grade in group] for group in graded.grades], np.float32)
        self.totals.grader_errors += sum(grade.error is not None for group in graded.grades for grade in group)
        if self.config.reward.shuffle:
            rng = np.random.default_rng((self.config.seed, step))
            rewards_PG = rng.permutation(rewards_PG.reshape(-1)).reshape(rewards_PG.shape)
        return rewards_PG

    def log(self, step: int, record: dict) -> None:
        """Write the line of a step. Its seconds run from the line before, or from the loop's start, to this one."""
        now = time.perf_counter()
        step_s, spent = now - self.line_at, self.seconds
        self.line_at, self.seconds = now, dict.fromkeys(PHASES, 0.0)
        record = self.job.identity | {"step": step} | asdict(self.totals) | record | spent
        record |= {"step_s": step_s, "other_s": step_s - sum(spent.values()), "compilations": self.compilations.count}
        if hosts.is_first():
            self.run.metrics.append(with_checksum(record))
        self.progress.step(step, record)

    @contextmanager
    def profiled(self, step: int):
        """A profile of the step that `train.profile` names, in RUN_DIR/profile."""
        if step != self.config.train.profile:
            yield
            return
        with (
            jax.profiler.trace(self.run.profile, create_perfetto_trace=True),
            jax.profiler.StepTraceAnnotation("step", step_num=step),
        ):
            yield
        self.progress.say(
            f"profile   {self.run.profile}: open its perfetto_trace.json.gz in Perfetto, or the folder in TensorBoard (XProf)"
        )

    @contextmanager
    def timed(self, name: str):
        start = time.perf_counter()
        with jax.profiler.TraceAnnotation(name.removesuffix("_s")), self.progress.doing(_TITLES[name]):
            yield
        self.seconds[name] += time.perf_counter() - start
