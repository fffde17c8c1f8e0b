"""What an evaluation came to: figures per suite, as JSON, Markdown and a picture, beside another model's where one is given."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from eval.run import EvaluationError, EvaluationFolder
from eval.statistics import Comparison, Estimate, compare, mean_estimate, pass_at_k
from jaxgrpo.whole_file import write_whole

_EXCERPT = 600  # characters of an example
_KNOWN = {"question", "sample", "response", "score", "tokens", "truncated", "grader_error"}


@dataclass(frozen=True)
class SuiteResult:
    """The figures of one suite. avg: the mean score, avg@k. pass_at: by k, powers of two below the number of samples, and that
    number itself."""

    name: str
    title: str
    questions: int
    overlong: int
    samples: int
    avg: Estimate
    pass_at: dict[int, Estimate]
    tokens: float
    truncated: float
    grader_errors: int
    figures: dict[str, float]
    comparison: Comparison | None = None


def scores_by_question(records: list[dict]) -> tuple[list[int], np.ndarray]:
    """(question numbers, scores [Q, K]) of a complete suite's outcomes."""
    questions = sorted({record["question"] for record in records})
    row = {question: number for number, question in enumerate(questions)}
    samples = 1 + max(record["sample"] for record in records)
    scores = np.full((len(questions), samples), np.nan)
    for record in records:
        scores[row[record["question"]], record["sample"]] = record["score"]
    return questions, scores


def suite_result(name: str, settings: dict, records: list[dict], other: list[dict] | None = None) -> SuiteResult:
    """The figures of a suite. other: another model's outcomes on the same questions, to which this one is compared."""
    questions, scores = scores_by_question(records)
    if np.isnan(scores).any():
        raise EvaluationError(f"suite {name} has questions with fewer samples than others: evaluate it in a new folder.")
    about = settings[f"suite {name}"]
    samples = scores.shape[1]
    ks = [*(2**power for power in range(samples.bit_length()) if 2**power < samples), samples]
    comparison = None
    if other is not None:
        theirs, before = scores_by_question(other)
        if theirs != questions:
            raise EvaluationError(f"suite {name}: the other model was asked other questions; evaluate it again.")
        comparison = compare(before.mean(axis=1), scores.mean(axis=1))
    names = sorted(set().union(*records) - _KNOWN)
    return SuiteResult(
        name=name,
        title=about["title"],
        questions=len(questions),
        overlong=about["overlong"],
        samples=samples,
        avg=mean_estimate(scores.mean(axis=1)),
        pass_at={k: mean_estimate(pass_at_k(scores, k)) for k in ks},
        tokens=float(np.mean([record["tokens"] for record in records])),
        truncated=float(np.mean([record["truncated"] for record in records])),
        grader_errors=sum("grader_error" in record for record in records),
        figures={figure: float(np.mean([record.get(figure, 0.0) for record in records])) for figure in names},
        comparison=comparison,
    )


def write_report(folder: EvaluationFolder, suites: list[str], other: EvaluationFolder | None = None) -> list[SuiteResult]:
    """summary.json, report.md and report.png of the complete suites in `folder`; returns their figures.

    other: another model's evaluation; suites that it holds with the same questions are compared.
    """
    settings, results, examples = folder.settings, [], []
    theirs_about = other.settings if other is not None else None
    for name in suites:
        records, theirs = folder.outcomes(name), None
        if theirs_about and theirs_about.get(f"suite {name}", {}).get("digest") == settings[f"suite {name}"]["digest"]:
            theirs = other.outcomes(name)
            if theirs is None and (lost := other.lost(name)):
                raise EvaluationError(f"{lost}: run that evaluation again.")
        results.append(suite_result(name, settings, records, theirs))
        examples.append(next((r for r in records if r["score"] >= 1), records[0]))
    against = theirs_about["model"] if theirs_about else None
    summary = {"model": settings["model"], "compared_with": against, "suites": [asdict(result) for result in results]}
    write_whole(folder.path / "summary.json", json.dumps(summary, indent=2) + "\n")
    write_whole(folder.path / "report.md", markdown(results, examples, settings, theirs_about))
    draw(results, folder.path / "report.png", settings["model"], against)
    return results


def markdown(results: list[SuiteResult], examples: list[dict], settings: dict, theirs: dict | None) -> str:
    """The report as Markdown: a table, what was left out, an example of every suite, and the settings.

    theirs: the settings of the other model's evaluation, where one is compared."""
    against = theirs["model"] if theirs else None
    counts = {result.samples for result in results}
    samples, k = max(counts), "k" if len(counts) > 1 else max(counts)
    head = ["suite", "questions", f"avg@{k}", "95 % interval"]
    head += [f"pass@{k}"] if samples > 1 else []
    head += ["tokens", "cut off"] + (["difference", "95 % interval", "p"] if against else [])
    lines = [f"# {settings['model']}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        own_k = f" (k = {result.samples})" if len(counts) > 1 else ""
        cells = [result.title, str(result.questions), f"{result.avg.value:.3f}{own_k}", _interval(result.avg)]
        cells += [f"{result.pass_at[result.samples].value:.3f}{own_k}"] if samples > 1 else []
        cells += [f"{result.tokens:,.0f}", f"{result.truncated:.1%}"]
        if against:
            c = result.comparison
            cells += [f"{c.difference.value:+.3f}", _interval(c.difference, "+"), f"{c.p_value:.3g}"] if c else ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "![scores](report.png)", ""]
    if against:
        lines += [f"Differences are to `{against}` on the same questions; p is the share of sign flips as extreme.", ""]
    notes = _differences(settings, theirs) if theirs else []
    for result in results:
        if theirs and not result.comparison:
            notes.append(f"{result.title}: not compared, `{against}` was not asked these questions")
        if result.overlong:
            total = result.overlong + result.questions
            notes.append(
                f"{result.title}: {result.overlong} of {total} prompts are longer than {settings['max_prompt_tokens']:,} "
                "tokens and were not asked"
            )
        if result.grader_errors:
            notes.append(f"{result.title}: the grader failed on {result.grader_errors} answers, which count as wrong")
        notes += [f"{result.title}: {name.replace('_', ' ')} {value:.3f}" for name, value in result.figures.items()]
    lines += [*(f"- {note}" for note in notes), ""] if notes else []
    lines += ["## One answer of each suite", ""]
    for result, example in zip(results, examples, strict=True):
        text = example["response"].strip()
        text = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT // 2]}\n[...]\n{text[-_EXCERPT // 2 :]}"
        verdict = "right" if example["score"] >= 1 else "wrong"
        quoted = "\n".join(f"> {line}" for line in text.splitlines() or ["(empty)"])
        lines += [f"**{result.title}**, question {example['question']}, {verdict}:", "", quoted, ""]
    plain = {key: value for key, value in settings.items() if not key.startswith("suite ")}
    lines += ["## Settings", "", *(f"- {key}: {value}" for key, value in plain.items()), ""]
    return "\n".join(lines)


def _differences(settings: dict, theirs: dict) -> list[str]:
    """What else than the model differs between two evaluations, so that a difference is not only the model's."""
    changed = [
        f"{key}: {theirs[key]} there, {value} here"
        for key, value in settings.items()
        if key not in ("model", "weights_digest") and not key.startswith("suite ") and key in theirs and theirs[key] != value
    ]
    return [f"the two evaluations differ in more than the model: {'; '.join(changed)}"] if changed else []


def draw(results: list[SuiteResult], path: Path, model: str, against: str | None) -> None:
    """A PNG: mean score of every suite with its interval; beside it pass@k, or the difference to the other model."""
    from jaxgrpo.picture import BLUE, ORANGE, plain, plt, save

    counts = {result.samples for result in results}
    samples, k = max(counts), "k" if len(counts) > 1 else max(counts)
    second = against is not None or samples > 1
    height = 1.5 + 0.42 * len(results)
    figure, axes = plt.subplots(
        1, 1 + second, figsize=(10.5 if second else 6.5, max(height, 3.0)), layout="constrained", squeeze=False
    )
    figure.suptitle(model, fontsize=11)
    places = np.arange(len(results))[::-1]
    labels = [f"{result.title} ({result.questions})" for result in results]
    _dots(axes[0, 0], places, [result.avg for result in results], BLUE)
    axes[0, 0].set(xlim=(0, 1.12), xlabel=f"avg@{k}, 95 % interval", xticks=np.arange(0, 1.1, 0.2))
    axes[0, 0].set_yticks(places, labels)
    if against is not None:
        for place, r in zip(places, results, strict=True):
            if r.comparison:
                before = r.avg.value - r.comparison.difference.value
                axes[0, 0].plot([before], [place], "o", mfc="none", color="#666666", ms=5)
        axes[0, 0].plot([], [], "o", mfc="none", color="#666666", ms=5, label=short_name(against))
        axes[0, 0].legend(fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)  # above: it is no result
        axes[0, 1].locator_params(axis="x", nbins=6)
        compared = [
            (place, result.comparison.difference) for place, result in zip(places, results, strict=True) if result.comparison
        ]
        if compared:
            _dots(axes[0, 1], [place for place, _ in compared], [difference for _, difference in compared], ORANGE, "+.3f")
        axes[0, 1].axvline(0, color="#666666", lw=1)
        axes[0, 1].set(xlabel=f"difference to {short_name(against)}", yticks=places, yticklabels=[""] * len(places))
    elif samples > 1:
        ticks = sorted(set().union(*(result.pass_at for result in results)))
        for result in results:
            ks = sorted(result.pass_at)
            axes[0, 1].plot(ks, [result.pass_at[k].value for k in ks], marker="o", ms=3.5, label=result.title)
        axes[0, 1].set_xscale("log", base=2)
        axes[0, 1].set(xlabel="k", ylabel="pass@k", ylim=(0, 1.02), xticks=ticks)
        axes[0, 1].set_xticklabels(map(str, ticks))
        axes[0, 1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    plain(axes.flat)
    save(figure, path)


def short_name(model: str) -> str:
    """Of a model, for a legend: RUN step N of a checkpoint, else the last part of its path."""
    path = Path(model)
    return f"{path.parents[1].name} step {path.name}" if path.parent.name == "checkpoints" else path.name


def _dots(axis, places, estimates: list[Estimate], colour: str, form: str = ".3f") -> None:
    values = np.array([[e.value, e.value - e.low, e.high - e.value] for e in estimates])
    axis.errorbar(values[:, 0], places, xerr=np.clip(values[:, 1:].T, 0, None), fmt="o", color=colour, capsize=2.5, ms=5)
    for place, estimate in zip(places, estimates, strict=True):
        axis.annotate(
            f"{estimate.value:{form}}", (estimate.high, place), xytext=(5, -3), textcoords="offset points", fontsize=8
        )
    axis.set_ylim(-0.6, max(places) + 0.6)


def _interval(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"
