"""What a person sees of a run: a header, a live line (step, reward, Pass@1, tokens/s, time left), a closing table."""

import os
import sys
from contextlib import AbstractContextManager

from rich.console import Console
from rich.table import Table

from jaxgrpo.parallel import hosts
from jaxgrpo.train.activity import Activity, fitted
from jaxgrpo.train.metrics import phase_seconds


class Progress:
    """Writes to standard output: lines that are kept up to date on a terminal, a line a step elsewhere; see `activity`."""

    def __init__(self, run):
        self.run = run
        self.console = Console(highlight=False, soft_wrap=True, quiet=not hosts.is_first())
        self.activity = Activity(self.console)
        self.tested: dict | None = None  # the record of the last evaluation
        self.compilations: int | None = None  # of the process, at the last line
        self.step_seconds: list[tuple[float, bool]] = []  # of the steps of this process, and whether something was compiled

    def say(self, text: str) -> None:
        self.activity.say(text)

    def doing(self, what: str) -> AbstractContextManager:
        return self.activity.doing(what)

    def begin(self, job, done: int, records: list[dict]) -> None:
        self.job, c = job, job.config
        n = job.identity["n_params"]
        size = f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M" if n >= 1e6 else f"{n / 1e3:.0f} k"
        shape = " x ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
        self.say(f"model     {c.model} ({size} parameters)")
        if job.family.note:
            self.say(f"family    {job.family.note}")
        where = f" on {hosts.count()} hosts" if hosts.count() > 1 else ""
        self.say(f"devices   {job.mesh.size} x {job.mesh.devices.flat[0].device_kind}{where}, mesh {shape}")
        self.say(
            f"training  {c.train.steps} steps of {c.data.prompts_per_step} prompts x {c.rollout.samples} samples from "
            f"{c.data.train}; {len(job.heldout)} held-out problems"
        )
        sequences, slots = c.data.prompts_per_step * c.rollout.samples, c.rollout.slots
        if slots < sequences:
            self.say(
                f"rollouts  {slots:,} of {sequences:,} sequences decoded at once (rollout.slots); the rest wait for a free slot"
            )
        for what, dropped in (("training", job.prompts.dropped), ("held-out", job.heldout_dropped)):
            if dropped:
                self.say(f"dropped   {dropped} {what} prompts longer than data.max_prompt_tokens={c.data.max_prompt_tokens}")
        if job.suites:
            counts = ", ".join(f"{name} {len(prompts):,}" for name, prompts in job.suites.items())
            self.say(f"suites    {counts} questions, every {c.eval.suites_every} steps")
        if job.sandbox:
            self.say(f"sandbox   {job.sandbox}: code that the model writes is run")
        overlap = job.prompts.also_in(job.heldout)
        if overlap:
            self.say(
                f"WARNING   {overlap} of the held-out problems are in the training file too: Pass@1 will flatter the model"
            )
        self.say(f"run       {self.run.path}{_stands(done, c.train.steps)}")
        tested = [r for r in records if r.get("test_loss") is not None]
        self.tested = tested[-1] if tested else None

    def step(self, step: int, record: dict) -> None:
        if record.get("test_loss") is not None:
            self.tested = record | {"step": step}
        if not hosts.is_first():  # a sign of life for the one who looks for the host that is stuck
            print(f"host {hosts.index()} is done with step {step}/{self.job.config.train.steps}", flush=True)
            return
        if step > 0:
            self.step_seconds.append((record["step_s"], record["compilations"] != self.compilations))
        self.compilations = record["compilations"]
        terminal = self.activity.on_terminal
        line = self._line(step, record, self.console.width if terminal else None)
        self.activity.headline = line
        if not terminal or "test_loss" in record:
            self.say(line)

    def _line(self, step: int, record: dict, width: int | None) -> str:
        """The line of a step, what matters less left out where the terminal is narrow."""
        total = self.job.config.train.steps
        parts = [(0, f"step {step:>{len(str(total))}}/{total}")]
        if "reward_mean" in record:
            parts.append((0, f"reward {record['reward_mean']:.3f}"))
        if self.tested:
            of = f" (step {self.tested['step']})" if self.tested["step"] != step else ""
            parts.append((0, f"Pass@1 {1 - self.tested['test_loss']:.3f}{of}"))
        if "reward_mean" in record:
            if record.get("grader_failed_fraction"):
                parts.append((0, f"graders failed {record['grader_failed_fraction']:.1%}"))
            parts.append((3, f"length {record['response_length_mean']:.1f}"))
            parts.append((4, f"rollout {record['rollout_tokens_per_s']:,.0f} tokens/s"))
            parts.append((2, f"{record['step_s']:.2f} s/step"))
        if "rollout_first_host_s" in record:
            spread = f"{record['rollout_first_host_s']:.2f} to {record['rollout_last_host_s']:.2f} s"
            parts.append((5, f"hosts' rollouts {spread}"))
        left = self.seconds_left(total - step)
        if left is not None:
            parts.append((1, f"{_duration(left)} left"))
        return fitted(parts, width)

    def seconds_left(self, steps: int) -> float | None:
        """For so many steps at the mean of those that compiled nothing; None before there was one, unless all compile."""
        seconds = [taken for taken, compiled in self.step_seconds if not compiled]
        if not seconds and len(self.step_seconds) > 3:
            seconds = [taken for taken, _ in self.step_seconds[1:]]
        return steps * sum(seconds) / len(seconds) if seconds else None

    def end(self, records: list[dict], best_checkpoint: tuple[int, float] | None, last_save_s: float) -> None:
        """The closing tables. last_save_s: the loop's seconds after the last line, for the save of the last step."""
        table = Table(title="result", title_justify="left", show_header=False)
        for _ in range(2):
            table.add_column(overflow="fold")
        tested = [r for r in records if r.get("test_loss") is not None]
        if tested:
            best = min(tested, key=lambda r: r["test_loss"])
            table.add_row("held-out problems", str(tested[0]["test_n"]))
            table.add_row(f"Pass@1 at step {tested[0]['step']}", f"{1 - tested[0]['test_loss']:.3f}")
            table.add_row(f"Pass@1 at step {tested[-1]['step']}", f"{1 - tested[-1]['test_loss']:.3f}")
            table.add_row(f"highest Pass@1 (step {best['step']})", f"{1 - best['test_loss']:.3f}")
        last = records[-1]
        table.add_row("prompts, tokens", f"{last['samples']:,}, {last['tokens']:,}")
        table.add_row(*compute_row(last))
        if last["grader_errors"] or last["skipped_updates"]:
            table.add_row("grader errors, skipped updates", f"{last['grader_errors']}, {last['skipped_updates']}")
        self.console.print(table, soft_wrap=False)
        self.console.print(phase_table(records, last_save_s), soft_wrap=False)
        run = self.run.path
        self.say(f"curve     {self.run.plots / 'learning_curve.png'}")
        self.say(f"metrics   {self.run.metrics.path}")
        if best_checkpoint:
            step, value = best_checkpoint
            self.say(f"best      {self.run.checkpoints / str(step)}, {self.job.config.checkpoint.metric} {value:.4g}")
        self.say("next")
        called = sys.argv[0]  # .venv/bin/jaxgrpo, where nobody activated the environment
        jaxgrpo = os.path.relpath(called) if os.path.basename(called) == "jaxgrpo" else "jaxgrpo"
        for command, what in (
            (f"train {run}/config.yaml train.steps={2 * max(self.job.config.train.steps, last['step'])}", "go on for longer"),
            (f"export {run} {run}/hf", "the model as a Hugging Face directory"),
            ("train configs/qwen2.5-0.5b.yaml --dry-run", "what a real model would take"),
        ):
            self.say(f"  {jaxgrpo} {command:<60} # {what}")


def compute_row(record: dict) -> tuple[str, str]:
    """The two measures of compute, neither of which holds the other: 6 N tokens takes every prompt once a sample, the count of
    operations once in all where it is shared, and has generation, scoring and recomputation besides."""
    law, counted = record["compute_flops"], record["compute_flops_total"]
    return "compute (FLOP)", f"{law:.3g} by 6 N tokens, {counted:.3g} counted operations"


def phase_table(records: list[dict], last_save_s: float) -> Table:
    """Where the time of all lines and of the save after the last went: seconds, their share, and seconds a step."""
    table = Table(title="where the time went", title_justify="left")
    for heading in ("phase", "seconds", "share", "seconds a step"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    steps = sum(record["step"] > 0 for record in records)
    seconds, old = phase_seconds(records, last_save_s)
    whole = sum(seconds.values())
    for phase, value in seconds.items():
        share = value / whole if whole else 0.0
        table.add_row(phase.removesuffix("_s"), f"{value:.1f}", f"{share:.0%}", f"{value / max(steps, 1):.2f}")
    if old:
        table.caption = f"save of {old} older lines, which added all saves up: taken as the difference to the line before"
    return table


def _stands(done: int, steps: int) -> str:
    """How far a run has come that was begun before."""
    if done > steps:
        return f", finished: it has {done} steps, more than train.steps={steps}; train.steps={2 * done} would go on"
    return f", finished at step {done}" if done == steps else f", going on after step {done}" if done else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
