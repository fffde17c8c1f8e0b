"""`python killed_run.py PHASE STEP train CONFIG ...`: the jaxgrpo command, killed or failing in a phase of a step."""

import os
import signal
import sys
import threading
import time

phase, step, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch_steps() -> list[int]:
    """A list that the run appends each step's number to; at the fatal step it first lets the pending checkpoint commit."""
    from jaxgrpo.train.loop import Trainer

    train_step, current = Trainer.step, []

    def step_and_tell(self, state, number):
        current.append(number)
        if number == step:
            self.checkpoints.wait()
        return train_step(self, state, number)

    Trainer.step = step_and_tell
    return current


def arm_rollout() -> None:
    """Die after a chunk was decoded, with more to come."""
    from jaxgrpo.rollout.engine import Engine

    decode, current = Engine.decode_chunk, watch_steps()

    def decode_chunk(self, params, state):
        result = decode(self, params, state)
        if current and current[-1] == step:
            die()
        return result

    Engine.decode_chunk = decode_chunk


def arm_update() -> None:
    """Die between the first and the second minibatch of the step."""
    from jaxgrpo.train.job import Job

    real, current = Job.update.func, watch_steps()

    def update(self):
        program = real(self)

        def run(*args):
            result = program(*args)
            if current[-1] == step:
                die()
            return result

        return run

    Job.update.func = update


def arm_save() -> None:
    """Die while the step's checkpoint is being written: its temporary folder exists, the committed one does not."""
    from jaxgrpo.train.checkpoint import Checkpoints

    save = Checkpoints.save

    def watched(self, number, state, *rest):
        def watch():
            while not any(f"{step}.orbax-checkpoint-tmp" in child.name for child in self.directory.iterdir()):
                time.sleep(0.0002)
            die()

        if number == step:
            threading.Thread(target=watch, daemon=True).start()
        save(self, number, state, *rest)
        if number == step:
            time.sleep(60)

    Checkpoints.save = watched


def arm_eval() -> None:
    """Die in the evaluation of the step, when its responses are made and not yet written."""
    from jaxgrpo.train import loop

    write, current = loop.write_records, watch_steps()
    pass_at_1 = loop.pass_at_1

    def dying(real):
        def called(*args):
            if current and current[-1] == step:
                die()
            return real(*args)

        return called

    loop.write_records, loop.pass_at_1 = dying(write), dying(pass_at_1)  # only the first host writes


def arm_error() -> None:
    """Raise after a chunk was decoded, instead of dying."""
    from jaxgrpo.rollout.engine import Engine

    decode, current = Engine.decode_chunk, watch_steps()

    def decode_chunk(self, params, state):
        if current and current[-1] == step:
            raise RuntimeError("the accelerator is gone")
        return decode(self, params, state)

    Engine.decode_chunk = decode_chunk


def arm_preempt() -> None:
    """Be asked to end before training has begun, while only JAX's preemption service listens."""
    from jaxgrpo.train.loop import Trainer

    run_all = Trainer.run_all

    def be_asked_and_run_all(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return run_all(self)

    Trainer.run_all = be_asked_and_run_all


def arm_warmup() -> None:
    """Be asked to end in the first step of the supervised start."""
    from jaxgrpo.train import warmup

    rows = warmup._rows

    def be_asked_and_pack(*arguments):
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        return rows(*arguments)

    asked: list = []
    warmup._rows = be_asked_and_pack


globals()[f"arm_{phase}"]()

from jaxgrpo.cli import main  # noqa: E402

sys.exit(main(arguments))
