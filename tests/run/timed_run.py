"""`python timed_run.py FIGURES train CONFIG ...`: the jaxgrpo command, on a disk that is slow by 0.6 s a save and a wait.

Writes the wall seconds of the training loop and of the blocking part of every save, by a clock of its own, to the file FIGURES.
"""

import json
import sys
import time

from jaxgrpo.cli import main
from jaxgrpo.train.checkpoint import Checkpoints
from jaxgrpo.train.progress import Progress

figures: dict = {"saves": []}


def clocked(real, delay: float):
    def call(*arguments):
        started = time.monotonic()
        time.sleep(delay)
        result = real(*arguments)
        figures["saves"].append(time.monotonic() - started)
        return result

    return call


def noting(real, name: str, after: bool):
    def call(*arguments):
        if not after:
            figures.setdefault(name, time.monotonic())
        result = real(*arguments)
        if after:
            figures.setdefault(name, time.monotonic())
        return result

    return call


Checkpoints.save = clocked(Checkpoints.save, 0.6)
Checkpoints.wait = clocked(Checkpoints.wait, 0.6)
Progress.begin = noting(Progress.begin, "begun", after=True)
Checkpoints.close = noting(Checkpoints.close, "ended", after=False)
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"loop_s": figures["ended"] - figures["begun"], "saves": figures["saves"]}, file)
sys.exit(code)
