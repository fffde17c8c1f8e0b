"""`jaxgrpo data ...`: its command lines and what they run. What a command needs is imported when it runs."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path


def add_data_commands(commands, run: Callable, run_on_devices: Callable) -> None:
    """Add the parsers. `run` is what the command line calls with the arguments, of which `make` does the work; `run_on_devices`
    starts jax before."""
    _add_prepare(commands, run)
    _add_reuse(commands, run)
    _add_benchmarks(commands, run)
    _add_rate(commands, run_on_devices)


def _add_prepare(commands, run: Callable) -> None:
    prepare = commands.add_parser(
        "prepare",
        help="curriculum, held-out set, prompts and repairs from a source",
        description="Write OUT_DIR/train.parquet in curriculum order, heldout.parquet, summary.json and difficulty.png. "
        "Without pass rates the order is the source's. Doubled backslashes and prompts that are the text of a message list are "
        "repaired and counted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    prepare.add_argument("source", metavar="SOURCE", help="hub id, such as LLM360/guru-RL-92k, or a parquet or JSONL file")
    _add_out_dir(prepare)
    prepare.add_argument(
        "--heldout", type=int, default=500, metavar="N", help="problems to hold out, half of them easy; 0: none"
    )
    prepare.add_argument("--seed", type=int, default=42, help="of the held-out set; 42 draws the paper's positions")
    _add_template(prepare)
    prepare.add_argument(
        "--against", nargs="+", default=[], metavar="FILE", help="benchmark files to look for in the training problems"
    )
    prepare.add_argument("--remove-contaminated", action="store_true", help="leave out training problems found there")
    prepare.set_defaults(run=run, make=_prepare)


def _add_out_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder for the files; others of these names are moved aside in it")


def _add_template(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--template",
        default="maths",
        metavar="TEMPLATE",
        help="what is put around the user's last message: maths (the paper's prompt, around problems with a mathematical "
        "answer alone), none, or around all of them a text with {question} in it or a file of one",
    )


def _add_rate(commands, run: Callable) -> None:
    rate = commands.add_parser(
        "rate",
        help="pass rates of a model on the problems of a file, for a curriculum",
        description="Answer every problem of SOURCE with a model, grade the answers, and write the problems with the share of "
        "right ones to a file that `jaxgrpo data prepare` sorts by it. The answers lie in a folder beside that file; the same "
        "command goes on where it was stopped.",
        epilog="key=value: the keys of `jaxgrpo eval` but eval.samples, eval.limit and eval.data, such as eval.temperature=1 "
        "or rollout.max_new_tokens=1024.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    rate.add_argument("source", metavar="SOURCE", help="parquet or JSONL file of problems, or hub id")
    rate.add_argument("overrides", metavar="key=value", nargs="*", help="such as eval.temperature=1")
    rate.add_argument(
        "--model", required=True, metavar="MODEL", help="run directory, one step of it, Hugging Face directory or hub id"
    )
    rate.add_argument("--samples", type=int, default=16, metavar="K", help="answers to each problem")
    rate.add_argument("--out", metavar="FILE", help="parquet file to write; by default SOURCE's name with -rated behind it")
    _add_template(rate)
    rate.set_defaults(run=run, make=_rate)


def _add_reuse(commands, run: Callable) -> None:
    reuse = commands.add_parser(
        "reuse",
        help="subsets that are seen tau times",
        description="Write OUT_DIR/sampled_1_TAU_ROWS.parquet for each tau, in curriculum order, as many easy as in the "
        "whole. Train on one with data.epochs=TAU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    reuse.add_argument("train_file", metavar="TRAIN_FILE", help="a prepared training file")
    _add_out_dir(reuse)
    reuse.add_argument(
        "--tau", type=int, nargs="+", default=[1, 2, 4, 5, 10, 20, 25, 50, 100], metavar="N", help="times seen; 1: the whole"
    )
    reuse.add_argument("--rows", type=int, default=0, metavar="N", help="of the file to draw from; 0: the first 51,200, or all")
    reuse.add_argument("--seed", type=int, default=42, help="42 draws the paper's subsets")
    reuse.add_argument("--independent", action="store_true", help="draw each subset by itself, not nested in the larger ones")
    reuse.add_argument("--shuffle", action="store_true", help="random order instead of the curriculum's: a control")
    reuse.set_defaults(run=run, make=_reuse)


def _add_benchmarks(commands, run: Callable) -> None:
    benchmarks = commands.add_parser(
        "benchmarks",
        help="the files of all suites, where `jaxgrpo eval` looks for them",
        description="Bring the benchmark files of all suites into DIR, from the hub or from a folder, and check their columns "
        "and counts. What is there and whole stays, so that a second call goes on. `eval.data` names the folder; its default, "
        "data, also finds files in a folder in it, such as data/benchmarks.",
    )
    benchmarks.add_argument("folder", metavar="DIR", help="folder for the files, such as data/benchmarks")
    benchmarks.add_argument(
        "--from", dest="source", metavar="SOURCE_DIR", help="take them from this folder, or folders in it, instead of the hub"
    )
    benchmarks.set_defaults(run=run, make=_benchmarks)


def _prepare(arguments) -> None:
    from rich.console import Console

    from jaxgrpo.aside import replacing
    from jaxgrpo.data.files import HELDOUT, TRAIN, load_problems
    from jaxgrpo.data.prepare import PICTURE, SUMMARY, prepare, write_prepared
    from jaxgrpo.data.prompts import asked, find_template
    from jaxgrpo.data.report import draw_difficulty, print_summary

    out = Path(arguments.out_dir)
    template = find_template(arguments.template)
    against = {Path(file).stem: [asked(p.messages) for p in load_problems(file)] for file in arguments.against}
    made = prepare(
        arguments.source,
        heldout=arguments.heldout,
        seed=arguments.seed,
        against=against,
        remove=arguments.remove_contaminated,
        template=template,
    )
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = 1000  # of a table in a log: as wide as it is
    stale = not made.heldout and (out / HELDOUT).exists()
    names = [TRAIN, *([HELDOUT] if made.heldout else []), SUMMARY, *([PICTURE] if made.rated else [])]
    with replacing(out, {*names, PICTURE}, partial(console.print, markup=False)):
        summary = write_prepared(made, out)
        if made.rated:
            draw_difficulty(made, out / PICTURE, arguments.source)
    print_summary(made, summary, console)
    if stale:
        console.print(f"left      {out / HELDOUT}, which is of an earlier call", markup=False)
    print(f"wrote     {', '.join(names)} in {out}")


def _reuse(arguments) -> None:
    from jaxgrpo.data.reuse import write_subsets

    paths = write_subsets(
        arguments.train_file,
        Path(arguments.out_dir),
        arguments.tau,
        seed=arguments.seed,
        rows=arguments.rows,
        independent=arguments.independent,
        shuffle=arguments.shuffle,
    )
    for tau, path in paths.items():
        print(f"wrote {path}: jaxgrpo train CONFIG data.train={path} data.epochs={tau}")


def _benchmarks(arguments) -> None:
    from eval.collection import collect

    collect(
        Path(arguments.folder), Path(arguments.source) if arguments.source else None, say=lambda line: print(line, flush=True)
    )


def _rate(arguments) -> None:
    from jaxgrpo.data.prompts import find_template
    from jaxgrpo.train.rating import rate

    template = find_template(arguments.template)
    rate(arguments.source, arguments.model, arguments.out, arguments.samples, template, arguments.overrides)
