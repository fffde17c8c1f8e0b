"""The figures of a report stand under their own names, against counts by hand."""

import json
from itertools import combinations

import pytest

from eval.report import _differences, markdown, short_name, suite_result, write_report
from eval.run import EvaluationFolder

RIGHT = {0: (1, 0, 0, 0, 0, 0, 0), 1: (0, 1, 1, 0, 0, 1, 0), 2: (0, 0, 0, 0, 0, 0, 0), 3: (0, 0, 0, 0, 0, 1, 1)}


def outcomes(samples, name="own", **further):
    return [
        {"question": q, "sample": s, "response": "x", "score": float(scores[s]), "tokens": 5, "truncated": False} | further
        for q, scores in RIGHT.items()
        for s in range(samples)
    ]


def about(*names, samples=2, **further):
    suites = {f"suite {name}": {"title": name, "questions": 4, "overlong": 0, "digest": "d"} for name in names}
    return {"model": "m", "max_prompt_tokens": 9, "samples": samples, "temperature": 0.7} | further | suites


def by_hand(samples, k):
    """The share of all choices of k samples that hold a right one, mean over questions."""
    chosen = [[any(c) for c in combinations(scores[:samples], k)] for scores in RIGHT.values()]
    return sum(sum(hits) / len(hits) for hits in chosen) / len(chosen)


def folder(path, settings, **suites):
    made = EvaluationFolder(path)
    made.open(settings)
    for name, records in suites.items():
        made.complete(name, records)
    return made


def table(path):
    lines = [line for line in (path / "report.md").read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[0], {row[0]: row for row in rows[2:]}


@pytest.mark.parametrize("samples", [2, 3, 4, 5, 6, 7])
def test_pass_at_k_is_printed_under_the_k_that_it_was_computed_for(samples, tmp_path):
    write_report(folder(tmp_path, about("own", samples=samples), own=outcomes(samples)), ["own"])
    head, rows = table(tmp_path)
    assert rows["own"][head.index(f"pass@{samples}")] == f"{by_hand(samples, samples):.3f}"
    assert rows["own"][head.index(f"avg@{samples}")] == f"{by_hand(samples, 1):.3f}"
    stored = json.loads((tmp_path / "summary.json").read_text())["suites"][0]["pass_at"]
    assert str(samples) in stored
    for k, estimate in stored.items():
        assert estimate["value"] == pytest.approx(by_hand(samples, int(k)))


def test_suites_of_different_sample_counts_name_the_k_of_each(tmp_path):
    settings = about("three", "six")
    results = [suite_result(name, settings, outcomes(samples)) for name, samples in (("three", 3), ("six", 6))]
    (tmp_path / "report.md").write_text(markdown(results, [outcomes(1)[0]] * 2, settings, None))
    head, rows = table(tmp_path)
    column = head.index("pass@k")
    for name, k in (("three", 3), ("six", 6)):
        assert rows[name][column] == f"{by_hand(k, k):.3f} (k = {k})"
        assert rows[name][head.index("avg@k")] == f"{by_hand(k, 1):.3f} (k = {k})"


def test_a_figure_of_the_grader_that_the_first_answer_lacks_is_reported():
    records = outcomes(1)
    for record in records[1:]:
        record["cell_accuracy"] = 0.5
    result = suite_result("own", about("own"), records)
    assert result.figures == {"cell_accuracy": pytest.approx(0.375)}


def test_a_comparison_says_which_settings_differ_and_what_could_not_be_compared(tmp_path):
    other = folder(tmp_path / "a", about("own", model="n", temperature=0.0), own=outcomes(2))
    write_report(folder(tmp_path / "b", about("own", "more"), own=outcomes(2), more=outcomes(2)), ["own", "more"], other)
    text = (tmp_path / "b" / "report.md").read_text()
    assert "temperature: 0.0 there, 0.7 here" in text
    assert "more: not compared, `n` was not asked these questions" in text


def test_another_model_is_no_difference_between_two_evaluations():
    mine = {"model": "a", "weights_digest": "57", "seed": 0, "temperature": 1.0, "suite math": {"questions": 2}}
    assert _differences(mine, mine | {"model": "b", "weights_digest": "15"}) == []
    (line,) = _differences(mine, mine | {"model": "b", "temperature": 0.0})
    assert line == "the two evaluations differ in more than the model: temperature: 0.0 there, 1.0 here"


def test_a_checkpoint_is_named_by_its_run_and_step():
    assert short_name("runs/quickstart/checkpoints/60") == "quickstart step 60"
    assert short_name("Qwen/Qwen2.5-7B-Instruct") == "Qwen2.5-7B-Instruct"
