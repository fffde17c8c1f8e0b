"""One run of `jaxgrpo bench`: the JSON object that it prints."""

import dataclasses
import json
import sys
from pathlib import Path

from jaxgrpo.bench.machine import describe, measured_peaks, peak_memory_mb
from jaxgrpo.bench.rollout import bench_rollout
from jaxgrpo.bench.step import bench_step, bench_update
from jaxgrpo.bench.task import Task, make_bench
from jaxgrpo.model.parameters import count_parameters
from jaxgrpo.whole_file import write_whole

PARTS = {"rollout": bench_rollout, "update": bench_update, "step": bench_step}


def say(text: str) -> None:
    """Progress, beside the JSON object on standard output."""
    print(f"bench     {text} ...", file=sys.stderr, flush=True)


def run_bench(arguments) -> dict:
    """Time what the parsed command line asks for; print the object and write it to `--json`."""
    task = Task(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Task)} | {"set": tuple(arguments.set)}
    )
    say("making the random model")
    bench = make_bench(task)
    about = describe()
    say("measuring this machine's peaks: a matrix product and a copy")
    peaks = measured_peaks(task.dtype)
    parameters = count_parameters(bench.model)["total"]
    say(f"compiling and timing: {arguments.part} of {parameters:,} parameters, {task.repeats} repeats")
    result = {"bench": arguments.part} | about
    result |= {"task": dataclasses.asdict(task), "parameters": parameters, "measured_peaks": peaks}
    result |= PARTS[arguments.part](bench, peaks) | peak_memory_mb()
    text = json.dumps(result, indent=1)
    if arguments.json:
        write_whole(Path(arguments.json), text + "\n")
    print(text)
    return result
