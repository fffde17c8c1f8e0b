"""How a run begins or goes on: its inputs held against its checkpoint, the start weights, the newest state that can be read.

Nothing is written to the run directory before everything was looked at.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from jaxgrpo import storage
from jaxgrpo.config import Config, replace
from jaxgrpo.model.family import model_family
from jaxgrpo.model.source import run_and_step
from jaxgrpo.parallel import hosts
from jaxgrpo.train.checkpoint import CheckpointError, Checkpoints, load_params, save_params, without_checksums
from jaxgrpo.train.conversion import write_companions
from jaxgrpo.train.fingerprints import weights_digest
from jaxgrpo.train.history import add_event
from jaxgrpo.train.job import Job
from jaxgrpo.train.metrics import damage
from jaxgrpo.train.origin import load_origin, origin_of
from jaxgrpo.train.progress import Progress
from jaxgrpo.train.resume import START, Changes, find_changes, refuse
from jaxgrpo.train.run import RunDirectory
from jaxgrpo.train.state import TrainState
from jaxgrpo.train.stored import Stored, stored_in
from jaxgrpo.train.warmup import make_encoder, warm_up

LOADING = "loading the weights"  # as it is shown while it lasts


class Start:
    """`stored` is what the run directory held before, `accept_changes` whether it may be another now; `inputs` are the
    fingerprints of all that was read so far."""

    def __init__(self, job: Job, run: RunDirectory, progress: Progress, stored: Stored | None, accept_changes: bool):
        self.job, self.run, self.progress = job, run, progress
        self.stored, self.accept, self.inputs = stored, accept_changes, dict(job.inputs)

    @property
    def config(self) -> Config:
        return self.job.config

    def changes(self, stored: Stored | None) -> Changes:
        """What is another than in the run so far. ChangedError where that cannot be, or was not accepted."""
        if stored is None:
            return Changes()
        changes = find_changes(self.config, self.inputs, stored)
        refuse(changes, stored, self.config.run_dir, self.accept)
        return changes

    def say_if_unprotected(self, params: Path) -> None:
        if hosts.is_first() and (note := without_checksums(params)):
            self.progress.say(note)

    def restore_newest(self, checkpoints: Checkpoints, steps: list[int]) -> tuple[TrainState, dict]:
        """(state, meta) of the newest checkpoint that every host can read. CheckpointError where there is none."""
        for step in steps:
            restored = complaint = None
            try:
                with self.progress.doing(f"reading the checkpoint of step {step}"):
                    restored = checkpoints.restore(step, self.job.abstract_state())
            except CheckpointError as error:
                complaint = str(error)
            complaints = [text for text in hosts.gather(complaint, f"checkpoint {step} to be read") if text]
            if not complaints:
                self.say_if_unprotected(self.run.checkpoints / str(step) / "params")
                return restored
            self.progress.say(f"WARNING   {complaints[0]}")
        raise CheckpointError(
            f"none of the checkpoints in {self.run.checkpoints} can be read ({complaints[0]}): bring one back, or delete the "
            "folder to begin again."
        )

    def begin(self, changes: Changes) -> None:
        """Begin at step 0 in a directory that may hold what an earlier start left, without a checkpoint to go on from."""
        if not hosts.is_first():
            return
        changed = bool(changes.bound or changes.form)
        if moved := self.run.set_aside(start_too=self.stored is None or changed, all_of_it=changed):
            names = ", ".join(sorted(child.name for child in moved.iterdir()))
            self.progress.say(f"moved     {names} to {moved}: no checkpoint goes with them, training begins at step 0")
        self.write_down()
        config = asdict(self.config)
        add_event(self.run.path, "start", 0, config=config, inputs=self.inputs, origin=self.job.origin)

    def write_down(self) -> None:
        """The config and the model's companions, for whoever goes on with the run or exports it."""
        config, stored = self.config, self.stored
        if stored is not None and self.run.newest_step() > config.train.steps:  # it was once trained for more steps
            config = replace(config, {"train.steps": stored.config.train.steps})
        if moved := self.run.write_config(config):
            self.progress.say(f"moved     config.yaml, which was written by hand, to {moved}")
        if self.job.source.path == self.run.path / "model":
            return
        with storage.written_locally(self.run.path / "model") as folder:
            write_companions(folder, self.job.source, self.job.tokenizer)

    def go_on_after(self, checkpoints: Checkpoints, meta: dict) -> None:
        """Go on from the checkpoint with this meta, with changes that may be: they are told and written into the history."""
        step, changes = meta["step"], self.changes(stored_in(meta))
        changed = [*changes.free, *changes.bound]
        if changed and step >= self.config.train.steps:
            self.progress.say(f"note      no step is left to train, so that nothing is changed: {'; '.join(changed)}")
            return
        if changes.free:
            self.progress.say(f"WARNING   changed after step {step}: {'; '.join(changes.free)}")
        if changes.bound:
            self.progress.say(f"WARNING   accepted after step {step}: {'; '.join(changes.bound)}")
        unusable = hosts.from_first([n for n in checkpoints.steps() if n > step], "the checkpoints that were passed over")
        if hosts.is_first():
            if unusable:  # no newer step is saved beside them
                moved = self.run.set_aside_checkpoints(unusable)
                self.progress.say(f"moved     checkpoints {', '.join(map(str, unusable))}, which are of no use, to {moved}")
            if found := damage(self.run.metrics.path, step):
                self.progress.say(
                    f"WARNING   {self.run.metrics.path} is damaged ({'; '.join(found)}): training goes on, but plots and "
                    "the law would lack these steps; bring the file back from a copy."
                )
            self.write_down()
            add_event(self.run.path, "resume", step, changes=changes.free, accepted=changes.bound)
            self.run.cut_after(step)
        hosts.barrier(f"the run directory to be cut back to step {step}")
        if unusable:
            checkpoints.reload()

    def initial_policy(self, begin: bool, before_more: Callable[[], None]) -> dict:
        """Loaded or random weights, after the supervised start where one is configured; that is done once per run. On the way
        all inputs are held against those of the run so far, before anything is written.

        begin: there is no checkpoint to go on from. before_more: called by all hosts between parts of the warm-up."""
        job = self.job
        kept = self.config.warmup.steps > 0 or bool(job.source.steps or job.origin)  # in warm_start/
        exists = hosts.from_first(self.run.warm_start.exists(), "whether there is a warm start") if kept else False
        params = None
        if job.origin:
            self.inputs["model"] = self.stored.inputs["model"]  # that run may be gone: what counts is the start kept of it
        else:
            params = None if exists and job.source.random else self.loaded()
            self.inputs["model"] = self.inputs.get("model") or job.weights_input(params)
        changes = self.changes(self.stored)
        if begin:
            self.begin(changes)
            exists = hosts.from_first(self.run.warm_start.exists(), "whether the warm start stays") if kept else False
        if not kept:
            return params
        if not exists:
            params = self.loaded() if params is None else params
            save_params(self.run.warm_start, self.warmed_up(params, before_more) if self.config.warmup.steps else params)
        del params
        self.say_if_unprotected(self.run.warm_start)
        with self.progress.doing(LOADING):
            remedy = f"delete {self.run.warm_start} to warm up again"
            params = load_params(self.run.warm_start, job.abstract_params(), remedy)
        self.inputs[START] = {"name": "warm_start", "digest": weights_digest(params)}
        self.changes(self.stored if not begin else None)
        return params

    def loaded(self) -> dict:
        """The weights that `model` names. Of another run the step that could be read is then written into the config."""
        job = self.job
        with self.progress.doing(LOADING):
            if not job.source.steps:
                return job.initial_params()
            params, step = load_origin(job.source, job.abstract_params(), self.progress.say)
        job.source = dataclasses.replace(job.source, name=f"{run_and_step(job.source.name)[0]}:{step.name}", steps=(step,))
        self.inputs["model"] = job.weights_input(params)
        job.origin = hosts.from_first(origin_of(step, self.inputs["model"]["digest"]), "where the weights come from")
        family = self.config.family or job.origin["model_family"] or model_family(job.source).name
        job.config = replace(self.config, {"model": job.source.name, "family": family})
        self.progress.say(f"origin    a new run from the weights of {job.source.name}")
        if not job.origin["model_family"]:
            self.progress.say("note      nothing there tells the family and nominal size: those of the path are assumed")
        return params

    def warmed_up(self, params: dict, before_more: Callable[[], None]) -> dict:
        job = self.job
        encode = make_encoder(
            job.tokenizer,
            job.turn_end,
            self.config.data.max_prompt_tokens,
            self.config.rollout.max_new_tokens,
            self.config.data.overlong,
        )

        def pass1(params, step):
            before_more()
            with self.progress.doing("evaluation"):
                return job.pass_at_1(params, step, "warmup")

        return warm_up(
            params,
            job.model,
            self.config,
            job.mesh,
            encode=encode,
            pad_id=job.pad_id,
            pass1=pass1,
            progress=self.progress.activity,
        )
