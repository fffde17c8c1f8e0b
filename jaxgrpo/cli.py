"""The `jaxgrpo` command. Exit codes: 0 done, 1 failed, 2 bad usage. jax is imported only inside the commands that need it."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from jaxgrpo import __version__, interruption
from jaxgrpo.data_commands import add_data_commands
from jaxgrpo.errors import UserError
from jaxgrpo.program_cache import keep_compiled_programs

DONE, FAILED = 0, 1


class _Parser(argparse.ArgumentParser):
    """One whose epilog may be a function: what it takes to write it is imported when help is asked for, not at every start."""

    def error(self, message: str) -> NoReturn:
        """argparse counts positionals that may be absent among those that are required."""
        if message.startswith("the following arguments are required"):
            message = f"{message.removesuffix(', key=value')} (`{self.prog} --help` explains them)"
        super().error(message)

    def format_help(self) -> str:
        if callable(self.epilog):
            self.epilog = self.epilog()
        return super().format_help()


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code. A request to end is heard from here on, see `interruption`."""
    with interruption.heard("nothing was begun"):
        return _run(argv)


def _run(argv: list[str] | None) -> int:
    from jaxgrpo.typed_text import from_home

    parser = command_line()
    arguments, rest = parser.parse_known_args(argv)  # argparse leaves overrides that follow an option
    if arguments.run is _fit:  # scaling has a command line of its own, which works without jaxgrpo
        arguments.rest = rest
        return _fit(arguments)
    if rest and ("overrides" not in arguments or any(r.startswith("-") or "=" not in r for r in rest)):
        keys = [argument.lstrip("-") for argument in rest if "=" in argument and "overrides" in arguments]
        hint = f"; keys are given without dashes: {' '.join(keys)}" if keys else ""
        parser.error(f"unrecognised arguments: {' '.join(rest)}{hint}")
    if rest:
        arguments.overrides += rest
    for name, value in vars(arguments).items():  # `~/` behind --out= or in quotes, which the shell leaves as it is
        if isinstance(value, str | list):
            every = [from_home(v) if isinstance(v, str) else v for v in ([value] if isinstance(value, str) else value)]
            setattr(arguments, name, every[0] if isinstance(value, str) else every)
    with interruption.looking_ahead(lambda: _OUTLOOKS.get(arguments.run, "")):
        return arguments.run(arguments)


def command_line() -> argparse.ArgumentParser:
    """The parser of everything that follows `jaxgrpo`."""
    parser = _Parser(
        prog="jaxgrpo", description="GRPO post-training of Qwen2.5 in JAX, and the scaling law of what more would buy."
    )
    parser.add_argument("--version", action="version", version=f"jaxgrpo {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model, or go on with the run in its run directory",
        description="Train by GRPO as CONFIG says. An existing run directory of the same config and inputs is resumed; "
        "model=RUN[:STEP] starts a new run from a checkpoint's weights.",
        epilog=_keys_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("config", metavar="CONFIG", help="YAML file; see configs/")
    train.add_argument("overrides", metavar="key=value", nargs="*", help="such as optim.lr=2e-6 or model=DIR")
    train.add_argument("--dry-run", action="store_true", help="print resolved config, mesh and bytes per device; run nothing")
    train.set_defaults(run=_train)

    _add_eval_command(commands)

    convert = commands.add_parser("convert", help="Hugging Face weights to a directory that loads in shards")
    convert.add_argument("hf_dir", metavar="HF_DIR", help="Hugging Face directory or hub id")
    convert.add_argument("out_dir", metavar="OUT_DIR", help="new directory; `jaxgrpo train CONFIG model=OUT_DIR` reads it")
    convert.set_defaults(run=_convert)

    export = commands.add_parser("export", help="a checkpoint to Hugging Face weights")
    export.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run directory (its newest checkpoint), one step of it, or OUT_DIR"
    )
    export.add_argument("out_dir", metavar="OUT_HF_DIR", help="new directory, loadable by transformers")
    export.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the original weights")
    export.set_defaults(run=_export)

    _add_check_command(commands)

    data = commands.add_parser("data", help="make training and held-out files, subsets for data reuse, benchmark files")
    add_data_commands(data.add_subparsers(title="commands", required=True, metavar="COMMAND"), _data, _data_on_devices)

    bench = commands.add_parser(
        "bench",
        help="time rollouts or whole steps of a random model on this machine",
        description="Print one JSON object: tokens per second of wall and processor time, compile seconds, peak memory, "
        "operations and bytes per second, and their share of this machine's measured peaks. The defaults are a 5 M parameter "
        "model, 64 prompts x 8 samples, 64 + 128 tokens.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_bench_options(bench)
    bench.set_defaults(run=_bench)

    serve = commands.add_parser(
        "serve",
        help="answer requests to a checkpoint through JetStream's gRPC service",
        description="Serve a checkpoint with JetStream's orchestrator over gRPC, from a child process that is started again "
        "when it dies. SIGTERM or Ctrl-C lets running requests end, for 5 seconds. There is no authentication.",
        epilog="keys: seed, data.max_prompt_tokens, data.tokenizer, rollout.temperature, rollout.top_k, rollout.top_p, "
        "rollout.min_p, rollout.max_new_tokens, rollout.slots, rollout.cache_gib, rollout.tensor, rollout.dtype, "
        "rollout.weights, rollout.cache_dtype, rollout.attention",
    )
    serve.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="run directory (its newest checkpoint), one step of it, a converted or Hugging Face directory, or a hub id",
    )
    serve.add_argument("overrides", metavar="key=value", nargs="*", help="such as rollout.dtype=float32")
    serve.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: %(default)s)")
    serve.add_argument("--port", type=int, default=9000, help="default: %(default)s; 0: a free one, which is printed")
    for option, key, meaning in (
        ("--slots", "rollout.slots", "sequences decoded at once (default: what memory holds, at most 64)"),
        ("--max-prompt", "data.max_prompt_tokens", "longest prompt in tokens (default: the run's, or what the model allows)"),
        ("--max-new", "rollout.max_new_tokens", "longest answer in tokens (default: likewise)"),
        ("--temperature", "rollout.temperature", "of sampling (default: 0, the likeliest token)"),
    ):
        serve.add_argument(option, dest="given", action="append", type=f"{key}={{}}".format, metavar="N", help=meaning)
    serve.set_defaults(run=_serve, given=[])

    study = commands.add_parser(
        "study",
        help="train a ladder of runs, then fit the law, predict and write a report",
        description="Train the runs of a study file, side by side where there are cores, and write OUT/report.md with the law, "
        "predictions and figures. The same command goes on where it was stopped; finished runs are not trained again.",
        epilog="key=value is a key of the study (jobs=1, seeds=[0], out=DIR, fit.warmup=4, runs.NAME.model=DIR) or else of the "
        "training configuration of all runs (train.steps=20).",
    )
    study.add_argument("config", metavar="CONFIG", help="study file; see configs/study*.yaml")
    study.add_argument("overrides", metavar="key=value", nargs="*", help="such as jobs=1 or train.steps=20")
    study.add_argument("--dry-run", action="store_true", help="print the runs and their commands; run nothing")
    study.set_defaults(run=_study)

    plan = commands.add_parser(
        "plan",
        help="whether a run fits a slice of TPUs or a machine of GPUs, and what it takes there",
        description="Print mesh, bytes per chip, seconds per phase, chip-hours and cost of a run on a slice that need not be "
        "at hand. Where the TPU compiler is installed (extra `tpu`), it compiles the programs for the slice and says what they "
        "need.",
    )
    plan.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    plan.add_argument("overrides", metavar="key=value", nargs="*", help="such as mesh.tensor=4 or plan.chip_hour_price=4.2")
    plan.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="such as v5p:4x4x8, v6e:2x4 or h200:8")
    plan.add_argument("--suggest", action="store_true", help="search meshes and row lengths, and rank those that fit")
    plan.add_argument("--no-compile", action="store_true", help="by model only, in a second")
    plan.add_argument("--prompt-len", type=int, metavar="N", help="mean tokens of a prompt (default: 100)")
    plan.add_argument("--response-len", type=int, metavar="N", help="of a response (default: 1000)")
    plan.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    plan.set_defaults(run=_plan)

    fit = commands.add_parser("fit", help="fit the scaling law to metrics and predict", add_help=False)
    fit.set_defaults(run=_fit)
    return parser


def _add_check_command(commands) -> None:
    check = commands.add_parser(
        "check",
        help="whether a run's checkpoints, logs and evaluations are as they were written",
        description="Read everything that a run left behind and verify its checksums: config.yaml, every array of every "
        "checkpoint, meta and metrics of every step, the lines of metrics.jsonl, the evaluation files that they count, and "
        "model/. One line for each, with what to do about what is damaged. Nothing is changed.",
        epilog="Exit code 0: all sound; 1: something is damaged; 2: nothing to check. Checkpoints saved before there were "
        "checksums are read through, which shows less. See docs/checkpoints.md.",
    )
    check.add_argument(
        "path", metavar="RUN", help="run directory, its checkpoints/, one step of it, or a converted directory; also gs://"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object instead")
    check.set_defaults(run=_check)


def _add_eval_command(commands) -> None:
    evaluate = commands.add_parser(
        "eval",
        help="run benchmarks on a model or on a checkpoint of a run",
        description="Ask every question of the suites, grade the answers, and write one JSON line for each, summary.json, "
        "report.md and report.png to a folder. The same command goes on where it was stopped.",
        epilog=_suites_help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        help="YAML file: the newest checkpoint of its run, or its model where there is none",
    )
    evaluate.add_argument("overrides", metavar="key=value", nargs="*", help="such as eval.samples=8 or eval.data=DIR")
    evaluate.add_argument(
        "--checkpoint", metavar="PATH", help="instead: run directory, one step of it, Hugging Face directory or hub id"
    )
    evaluate.add_argument(
        "--suite",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="benchmarks, or YAML files that describe one; default: the eight of the paper",
    )
    evaluate.add_argument("--out", metavar="DIR", help="folder of the outcomes (default: in the run, or evaluations/MODEL)")
    evaluate.add_argument("--compare", metavar="DIR", help="another model's outcomes, to compare with question by question")
    evaluate.set_defaults(run=_eval)


def _suites_help() -> str:
    from eval.suite import known_suites, load_suite
    from jaxgrpo.config import EVALUATION_KEYS, Config, flatten

    suites = [f"  {name:<12} {load_suite(name).title}" for name in known_suites()]
    defaults = flatten(Config())
    keys = [f"  {key}={_as_typed(defaults[key])}" for key in EVALUATION_KEYS]
    return "\n".join(["suites:", *suites, "", "keys and their defaults:", *keys])


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("part", choices=["rollout", "update", "step"], help="rollouts alone, updates alone, or whole GRPO steps")
    sizes = {
        "layers": (4, "transformer layers"),
        "hidden": (256, "width"),
        "heads": (4, "query heads"),
        "kv-heads": (2, "key and value heads"),
        "ffn": (1024, "width of the MLP"),
        "vocab": (4096, "entries of the vocabulary"),
        "prompts": (64, "prompts of a rollout"),
        "samples": (8, "responses to each prompt"),
        "prompt-len": (64, "tokens of every prompt"),
        "new-tokens": (128, "tokens of the longest response"),
        "repeats": (3, "timed repetitions, after one that is not counted"),
        "seed": (0, "of weights, prompts and samples"),
    }
    for name, (default, meaning) in sizes.items():
        bench.add_argument(f"--{name}", type=int, default=default, metavar="N", help=meaning)
    bench.add_argument("--model", metavar="random:NAME", help="such as random:qwen2.5-0.5b, instead of the sizes")
    bench.add_argument(
        "--lengths", choices=["fixed", "long-tail"], default="fixed", help="of responses; long-tail: a quarter on average"
    )
    bench.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of weights, cache and activations")
    bench.add_argument("--slots", type=int, default=0, metavar="N", help="sequences decoded at once; 0: worked out")
    bench.add_argument("--chunk", type=int, default=0, metavar="N", help="tokens per dispatch; 0: worked out")
    bench.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a configuration key, such as train.remat=layer"
    )
    bench.add_argument("--json", metavar="OUT", help="also write the object to this file")


def _eval(arguments) -> int:
    def run():
        from jaxgrpo.config import Config

        if arguments.config and "=" in arguments.config:  # with --checkpoint the first override stands where CONFIG would
            arguments.overrides.insert(0, arguments.config)
            arguments.config = None
        arguments.overrides += [name for name in arguments.suite if "=" in name]  # --suite takes all that follows it
        suites = [name for name in arguments.suite if "=" not in name]
        _start_jax(Config())
        from jaxgrpo.train.evaluation import evaluate, find_model

        served = find_model(arguments.config, arguments.checkpoint, arguments.overrides)
        evaluate(served, suites, arguments.out, arguments.compare)

    return _reported(run)


def _data(arguments) -> int:
    return _reported(lambda: arguments.make(arguments))


def _data_on_devices(arguments) -> int:
    def run():
        from jaxgrpo.config import Config

        _start_jax(Config())
        arguments.make(arguments)

    return _reported(run)


def _bench(arguments) -> int:
    def run():
        from jaxgrpo.config import Config

        _start_jax(Config())
        from jaxgrpo.bench.run import run_bench

        run_bench(arguments)

    return _reported(run)


def _as_typed(value) -> str:
    """A value of a key as somebody would type it."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _keys_help() -> str:
    from jaxgrpo.config import Config, flatten

    rows = (f"  {key}={_as_typed(value)}" for key, value in flatten(Config()).items())
    return "keys and their defaults (0 or empty often means: worked out at the start):\n" + "\n".join(rows)


def _train(arguments) -> int:
    from jaxgrpo.config import ConfigError, given_keys, load_config

    def run():
        config = load_config(arguments.config, arguments.overrides)
        given, folder = given_keys(arguments.config, arguments.overrides), Path(arguments.config).parent
        if "run_dir" not in given and (folder / "checkpoints").is_dir():
            raise ConfigError(
                f"{arguments.config} of a run names no run_dir, it is damaged: name the run's first CONFIG instead."
            )
        _start_jax(config)
        if arguments.dry_run:
            from jaxgrpo.train.dry_run import print_dry_run

            print_dry_run(config)
        else:
            from jaxgrpo.parallel import hosts

            hosts.start(config.hosts)
            from jaxgrpo.train.loop import train

            with hosts.ending_together():
                train(config, given)

    return _reported(run)


def _convert(arguments) -> int:
    def run():
        os.environ["JAX_PLATFORMS"] = "cpu"  # the whole model passes through: the host's memory is the larger one
        from jaxgrpo.train.conversion import convert

        print(f"converted {arguments.hf_dir} to {convert(arguments.hf_dir, arguments.out_dir)}")

    return _reported(run)


def _export(arguments) -> int:
    def run():
        os.environ["JAX_PLATFORMS"] = "cpu"
        from jaxgrpo.train.conversion import export

        out, step = export(arguments.checkpoint, arguments.out_dir, arguments.dtype)
        print(f"exported {arguments.checkpoint}{'' if step is None else f', step {step},'} to {out}")

    return _reported(run)


def _check(arguments) -> int:
    def run():
        os.environ["JAX_PLATFORMS"] = "cpu"
        from jaxgrpo.train.check import check

        check(arguments.path, as_json=arguments.json)

    return _reported(run)


def _serve(arguments) -> int:
    import json

    from jaxgrpo.parallel.mesh import prepare_cpu_devices
    from jaxgrpo.rollout.jetstream_package import require_jetstream
    from jaxgrpo.rollout.supervisor import Supervisor, reserve_port

    try:
        require_jetstream("jaxgrpo serve")
        port = reserve_port(arguments.host, arguments.port)
    except UserError as error:
        print(f"jaxgrpo: {error}", file=sys.stderr)
        return error.exit_code
    prepare_cpu_devices(0)
    keep_compiled_programs()
    overrides = arguments.given + arguments.overrides
    options = {"checkpoint": arguments.checkpoint, "overrides": overrides, "host": arguments.host, "port": port}
    return Supervisor([sys.executable, "-P", "-m", "jaxgrpo.train.serving", json.dumps(options)]).run()


def _study(arguments) -> int:
    def run():
        keep_compiled_programs()
        from jaxgrpo.study.run import print_plan, study

        (print_plan if arguments.dry_run else study)(arguments.config, arguments.overrides)

    return _reported(run)


def _plan(arguments) -> int:
    def run():
        from jaxgrpo.plan.compiled import prepare_environment

        prepare_environment()
        from jaxgrpo.plan.run import run_plan

        run_plan(arguments.config, arguments.overrides, arguments.topology, arguments)

    return _reported(run)


def _fit(arguments) -> int:
    from scaling.__main__ import main as fit

    return fit(arguments.rest, prog="jaxgrpo fit")


def _start_jax(config) -> None:
    """Virtual CPU devices and the compilation cache: both must be set before jax starts its backends."""
    import math

    from jaxgrpo.parallel.mesh import prepare_cpu_devices

    mesh = config.mesh
    if not mesh.fsdp:
        from jaxgrpo.storage import location
        from jaxgrpo.train.stored import read_stored

        stored = read_stored(location(config.run_dir))
        mesh = stored.config.mesh if stored else mesh
    prepare_cpu_devices(math.prod((mesh.data, mesh.fsdp, mesh.tensor)) // max(config.hosts.count, 1))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    os.environ.setdefault("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", str(memory // 2**30))  # for train.offload; 64 by itself
    keep_compiled_programs()


def _reported(run) -> int:
    """Run a command; a failure that a user can mend becomes one line and an exit code, anything else a traceback."""
    try:
        run()
        sys.stdout.flush()
        return DONE
    except KeyboardInterrupt:  # where requests are not heard: in a thread of somebody's program
        print("jaxgrpo: ended by Ctrl-C.", file=sys.stderr)
        return interruption.INTERRUPTED
    except UserError as error:
        print(f"jaxgrpo: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        where = "" if error.filename or error.errno is None else " (of the output of this command, where no file is named)"
        print(f"jaxgrpo: {error}{where}; mend that and run the same command again.", file=sys.stderr)
        return FAILED


# What a request to end leaves behind, and what the same command does next. A run that is under way says so by itself.
_OUTLOOKS = {
    _train: "nothing was begun",
    _eval: "answers that are written stay, the same command goes on from there",
    _study: "the same command goes on with what is not done",
    _convert: "nothing is left behind",
    _export: "nothing is left behind",
}

if __name__ == "__main__":
    here = os.getcwd()  # which `python -m` puts first: an eval.py of the user's own would be taken for ours
    if Path(here) != Path(__file__).resolve().parents[1]:
        sys.path[:] = [folder for folder in sys.path if folder not in ("", here)]
    sys.exit(main())
