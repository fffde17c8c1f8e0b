"""The paper's recipe on a synthetic source of the hub's schema, and against the files that the paper published."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxgrpo.cli import main
from jaxgrpo.data import DataError
from jaxgrpo.data.contamination import find_matches
from jaxgrpo.data.files import problem_rows, write_parquet
from jaxgrpo.data.prepare import heldout_positions, pass_rate, prepare, write_prepared
from jaxgrpo.data.prompts import BOXED, INTRODUCTION, question_of
from jaxgrpo.data.repair import Repairs
from jaxgrpo.data.reuse import subset_positions, write_subsets
from tests.data.published import path as published_path
from tests.data.published import published

N = 54_404


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """54,404 rows with the hub's columns: pass rates in sixteenths up to 11/16, some missing, file order random."""
    rng = np.random.default_rng(0)
    rates = rng.permutation(np.r_[rng.integers(5, 12, 11_804), rng.integers(0, 5, N - 11_804)]) / 16
    rows = [
        {
            "data_source": ("math__merged_deduped_dapo_or1_dataset", "math__deepscaler_preview")[i % 3 == 0],
            "prompt": [{"role": "user", "content": f"What is {i} + {i % 7}?" + (BOXED if i % 5 == 0 else "")}],
            "ability": "math",
            "reward_model": {"ground_truth": str(i + i % 7), "style": "rule"},
            "apply_chat_template": True,
            "qwen2.5_7b_pass_rate": None if rate == 0 and i % 2 else float(rate),
            "qwen3_30b_pass_rate": 1.0,
        }
        for i, rate in enumerate(rates)
    ]
    path = tmp_path_factory.mktemp("source") / "math__combined_54.4k.parquet"
    write_parquet(path, rows)
    return path


@pytest.fixture(scope="module")
def made(source):
    return prepare(str(source))


def test_split_sizes_and_kinds_are_the_papers(made):
    assert (len(made.train), len(made.heldout)) == (53_904, 500)
    assert sum(pass_rate(row) >= 0.3 for row in made.heldout) == 250
    assert {row["extra_info"]["split"] for row in made.train} == {"train"}
    assert {row["extra_info"]["split"] for row in made.heldout} == {"test"}
    indices = [row["extra_info"]["index"] for row in made.train + made.heldout]
    assert sorted(indices) == list(range(N))
    assert set(made.train[0]) == {"data_source", "prompt", "ability", "reward_model", "extra_info"}


def test_the_curriculum_falls_and_keeps_the_sources_order_among_equal_rates(source, made):
    rates = [pass_rate(row) for row in made.train]
    assert rates == sorted(rates, reverse=True)
    position = {row["prompt"][0]["content"].split("?")[0]: i for i, row in enumerate(pq.read_table(source).to_pylist())}
    order = [position[row["prompt"][0]["content"].removeprefix(INTRODUCTION).split("?")[0]] for row in made.train]
    for rate in set(rates):
        same = [o for o, r in zip(order, rates, strict=True) if r == rate]
        assert same == sorted(same)


def test_every_prompt_has_one_introduction_and_one_request_for_a_box(made):
    for row in made.train[::50] + made.heldout:
        content = row["prompt"][-1]["content"]
        assert content.startswith(INTRODUCTION + "What is ") and content.count(INTRODUCTION) == 1
        assert content.endswith(BOXED) and content.count(r"\boxed{}") == 1


def test_subsets_have_the_papers_sizes_are_nested_and_ordered(made, tmp_path):
    write_prepared(made, tmp_path)
    taus = [2, 4, 5, 10, 20, 25, 50, 100]
    paths = write_subsets(str(tmp_path / "train.parquet"), tmp_path, taus)
    indices = {}
    for tau, path in paths.items():
        rows = pq.read_table(path).to_pylist()
        indices[tau] = [row["extra_info"]["index"] for row in rows]
        assert len(rows) == 51_200 // tau
        assert indices[tau] == sorted(indices[tau])
        easy = sum(pass_rate(row) >= 0.3 for row in rows) / len(rows)
        assert easy == pytest.approx((11_804 - 250) / 51_200, abs=1 / len(rows))
    for larger, smaller in zip(taus, taus[1:], strict=False):
        assert set(indices[smaller]) < set(indices[larger])


def test_independent_subsets_are_not_nested_and_shuffled_ones_keep_their_rows(made, tmp_path):
    write_prepared(made, tmp_path)
    train = str(tmp_path / "train.parquet")

    def indices(**options):
        paths = write_subsets(train, tmp_path / "out", [50, 100], **options)
        return [[row["extra_info"]["index"] for row in pq.read_table(path).to_pylist()] for path in paths.values()]

    nested, small = indices()
    alone, other = indices(independent=True)
    assert set(small) < set(nested) and len(set(other) & set(alone)) < 0.1 * len(other)
    shuffled = indices(shuffle=True)[0]
    assert sorted(shuffled) == nested and shuffled != nested
    assert indices(seed=1)[0] != nested


def test_held_out_positions_are_those_of_the_published_held_out_set():
    rows = published("guru_math/math__full_difficulty_ordered_test_500.parquet")
    easy = np.arange(N) < 11_804  # in curriculum order the easy problems come first
    drawn = heldout_positions(list(easy), 500, seed=42)
    assert sorted(drawn) == sorted(row["extra_info"]["index"] for row in rows)


def test_subset_positions_are_those_of_the_published_subsets():
    easy = np.arange(51_200) < 11_804 - 250
    chosen = {}
    for tau, size in ((4, 12_800), (100, 512)):
        rows = published(f"guru_math/math__sampled_1_{tau}_{size}.parquet")
        chosen[tau] = subset_positions(easy, size, seed=42).tolist()
        assert chosen[tau] == [row["__index_level_0__"] for row in rows]
    assert set(chosen[100]) < set(chosen[4])


@pytest.mark.parametrize(
    ("name", "truths", "prompts"), [("sampled_1_4_12800", 1465, 13), ("full_difficulty_ordered_test_500", None, None)]
)
def test_prepared_rows_come_back_unchanged_but_for_the_repairs(name, truths, prompts, tmp_path):
    path = f"guru_math/math__{name}.parquet"
    before = published(path)
    made = prepare(str(published_path(path)), heldout=0)
    write_prepared(made, tmp_path)
    after = pq.read_table(tmp_path / "train.parquet").to_pylist()
    repairs = Repairs()
    repaired = problem_rows(str(published_path(path)), repairs)
    if truths is not None:
        assert (repairs.ground_truths, repairs.prompts) == (truths, prompts)
    stable = sorted(repaired, key=pass_rate, reverse=True)
    assert len(after) == len(before)
    for row, wanted in zip(after, stable, strict=True):
        assert all(row[column] == wanted[column] for column in row)
    changed = [
        (row, old)
        for row, old in zip(repaired, before, strict=True)
        if any(row[column] != old[column] for column in old if column != "__index_level_0__")
    ]
    for row, old in changed:
        assert row["data_source"] == old["data_source"] and row["extra_info"] == old["extra_info"]
        pair = (old["reward_model"]["ground_truth"] + old["prompt"][0]["content"]).replace("\\", "")
        assert pair == (row["reward_model"]["ground_truth"] + row["prompt"][0]["content"]).replace("\\", "")


def test_the_two_published_contaminations_are_found():
    train = [row["prompt"][0]["content"] for row in published("guru_math/math__sampled_1_4_12800.parquet")]
    names = ("math__math_500", "amc2023", "aime2024", "gsm8k")
    against = {name: [row["prompt"][0]["content"] for row in published(f"benchmarks/{name}.parquet")] for name in names}
    matches = find_matches(train, against)

    def plain(prompt):
        return " ".join(question_of(prompt).split())

    raw = [plain(prompt) for prompt in train]  # PAPER.md 2.2: one problem of each set, spaces apart
    exact = {name: [raw.index(q) for q in map(plain, against[name]) if q in raw] for name in names}
    assert {name: len(rows) for name, rows in exact.items()} == {"math__math_500": 1, "amc2023": 1, "aime2024": 0, "gsm8k": 0}
    for name, rows in exact.items():
        assert set(rows) <= {match.row for match in matches if match.benchmark == name and match.verbatim}
    assert Counter(match.benchmark for match in matches if match.verbatim) == {"math__math_500": 4, "amc2023": 2}
    for match in find_matches(train, {"gsm8k": against["gsm8k"]}):
        assert match.overlap >= 0.8


def test_contamination_is_found_through_case_markup_and_prompt_and_not_through_other_numbers():
    question = "Let $x$ be a real number such that the sum of its digits is 7 and its square ends in 44. Find $x$."
    benchmark = {"b": [INTRODUCTION + question + BOXED]}
    same = find_matches([question.upper().replace("$", r"\(")], benchmark)
    assert [(match.row, match.question, match.verbatim) for match in same] == [(0, 0, True)]
    longer = find_matches(["Warm-up. " + question], benchmark)
    assert len(longer) == 1 and 0.8 <= longer[0].overlap < 1
    assert find_matches([question.replace("7", "9").replace("44", "21").replace("digits", "divisors")], benchmark) == []


def test_removal_leaves_contaminated_problems_out(tmp_path):
    rows = [
        {
            "data_source": "math__x",
            "prompt": [{"role": "user", "content": f"Compute the value of {n} times {n + 1}."}],
            "reward_model": {"ground_truth": str(n * n + n)},
            "extra_info": {"qwen2.5_7b_pass_rate": n / 16},
        }
        for n in range(8)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = prepare(str(path), heldout=0, against={"b": ["compute the value of 3 times 4"]}, remove=True)
    assert made.removed == 1 and len(made.train) == 7
    assert [pass_rate(row) for row in made.train] == [7 / 16, 6 / 16, 5 / 16, 4 / 16, 2 / 16, 1 / 16, 0]


@pytest.mark.parametrize(("heldout", "message"), [(54_404, "choose 0 to 54403"), (-1, "cannot be held out")])
def test_a_held_out_set_that_does_not_fit_is_refused(source, heldout, message):
    with pytest.raises(DataError, match=message):
        prepare(str(source), heldout=heldout)


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    row = {"data_source": "math__x", "prompt": "What is 1?", "reward_model": {"ground_truth": "1"}}
    path.write_text(json.dumps(row) + "\n")
    assert main(["data", "prepare", str(path), str(tmp_path / "out")]) == 1
    assert "has 1 problems, --heldout 500 cannot be held out; choose 0 to 0" in capsys.readouterr().err
    path.write_text(json.dumps(row | {"qwen2.5_7b_pass_rate": 0.5}) + "\n")
    assert main(["data", "reuse", str(path), str(tmp_path / "out"), "--tau", "5"]) == 1
    assert "--tau 5" in capsys.readouterr().err
    path.write_text(json.dumps({"prompt": "What is 1?"}) + "\n")
    assert main(["data", "prepare", str(path), str(tmp_path / "out")]) == 1
    assert "no column data_source, reward_model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_commands_write_files_that_a_run_can_use(tmp_path, capsys):
    rows = [
        {
            "data_source": "math__x",
            "prompt": f"What is {n} + {n}?",
            "reward_model": {"ground_truth": rf"\\frac{{{4 * n}}}{{2}}"},
            "qwen2.5_7b_pass_rate": n / 64,
        }
        for n in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert main(["data", "prepare", str(path), str(out), "--heldout", "8"]) == 0
    shown = capsys.readouterr().out
    assert "40 ground truths" in shown and "difficulty.png" in shown
    assert (out / "difficulty.png").read_bytes()[:4] == b"\x89PNG"
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["train"]["problems"], summary["heldout"]["problems"]) == (32, 8)
    assert main(["data", "reuse", str(out / "train.parquet"), str(out), "--tau", "4"]) == 0
    assert "data.epochs=4" in capsys.readouterr().out
    assert pq.read_table(out / "sampled_1_4_8.parquet").num_rows == 8
    assert prepare(str(out / "train.parquet"), heldout=0).train == pq.read_table(out / "train.parquet").to_pylist()


def own_rows(path, count=40, **columns):
    rows = [
        {"data_source": "math__x", "prompt": f"What is {n} + {n}?", "reward_model": {"ground_truth": str(2 * n)}} | columns
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def truths(file):
    return [int(row["reward_model"]["ground_truth"]) // 2 for row in pq.read_table(file).to_pylist()]


def test_a_file_without_pass_rates_keeps_its_order_and_holds_out_at_random_and_says_so(tmp_path, capsys):
    source, out = own_rows(tmp_path / "mine.jsonl"), tmp_path / "out"
    assert main(["data", "prepare", source, str(out), "--heldout", "8"]) == 0
    said = capsys.readouterr().out
    assert "no problem has a pass rate" in said and "the source's order is kept" in said
    assert "drawn at random" in said and "jaxgrpo data rate" in said
    assert "no question of heldout was found in the training problems; --against names benchmark files" in said
    train, heldout = truths(out / "train.parquet"), truths(out / "heldout.parquet")
    drawn = np.random.RandomState(42).choice(40, 8, replace=False)
    assert heldout == sorted(drawn) and train == [n for n in range(40) if n not in drawn]
    assert not (out / "difficulty.png").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["order"], summary["without_pass_rate"]) == ("source", 40)
    assert main(["data", "prepare", source, str(tmp_path / "other"), "--heldout", "8", "--seed", "7"]) == 0
    assert truths(tmp_path / "other" / "heldout.parquet") != heldout
    assert main(["data", "prepare", str(out / "train.parquet"), str(tmp_path / "again"), "--heldout", "0"]) == 0
    assert "copies    nothing was looked for; --against names benchmark files" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "again" / "train.parquet").to_pylist() == pq.read_table(out / "train.parquet").to_pylist()
    assert main(["data", "reuse", str(out / "train.parquet"), str(out), "--tau", "1", "4"]) == 0
    assert truths(out / "sampled_1_1_32.parquet") == train and len(truths(out / "sampled_1_4_8.parquet")) == 8


def test_a_held_out_file_of_an_earlier_call_is_told(tmp_path, capsys):
    source, out = own_rows(tmp_path / "mine.jsonl"), tmp_path / "out"
    assert main(["data", "prepare", source, str(out), "--heldout", "8"]) == 0
    assert "earlier call" not in capsys.readouterr().out
    assert main(["data", "prepare", source, str(out), "--heldout", "0"]) == 0
    assert "heldout.parquet, which is of an earlier call" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("maths", INTRODUCTION + "What is 0 + 0?" + BOXED),
        ("none", "What is 0 + 0?"),
        ("Q: {question}\nA: \\boxed{}", "Q: What is 0 + 0?\nA: \\boxed{}"),
        ("FILE", "From a file:\n\nWhat is 0 + 0?"),
    ],
)
def test_the_template_is_a_name_a_text_or_a_file(template, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("From a file:\n\n{question}\n")
    own_rows(tmp_path / "mine.jsonl", 3)
    for source in ("mine.jsonl", "out/train.parquet"):  # prepared once more, it stays as it is
        assert main(["data", "prepare", source, "out", "--heldout", "0", "--template", template]) == 0
        assert pq.read_table("out/train.parquet").to_pylist()[0]["prompt"] == [{"role": "user", "content": expected}]


def test_another_template_takes_the_place_of_the_papers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own_rows(tmp_path / "mine.jsonl", 3)
    assert main(["data", "prepare", "mine.jsonl", "out", "--heldout", "0"]) == 0
    assert main(["data", "prepare", "out/train.parquet", "out", "--heldout", "0", "--template", "{question} = ?"]) == 0
    assert pq.read_table("out/train.parquet").to_pylist()[1]["prompt"][0]["content"] == "What is 1 + 1? = ?"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["template"] == "{question} = ?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("math", "there is no such file"),
        ("Solve: {problem}", "must be written {question}, once"),
        ("{question} and {question}", "the text has 2 of it"),
        ("empty.txt", "the file has 0 of it"),
        ("latin.txt", "not readable as UTF-8"),
        ("", "there is no such file"),
    ],
)
def test_a_template_without_a_place_for_the_question_is_refused(template, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_rows(tmp_path / "mine.jsonl", 3)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 {question}")
    assert main(["data", "prepare", "mine.jsonl", "out", "--heldout", "0", "--template", template]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_what_extra_info_holds_is_kept_beside_index_rates_and_split(tmp_path):
    source = own_rows(tmp_path / "mine.jsonl", 4, extra_info={"author": "me"}, pass_rate=0.5, pass_rate_model="M")
    assert main(["data", "prepare", source, str(tmp_path / "out"), "--heldout", "0"]) == 0
    info = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()[3]["extra_info"]
    assert info == {"author": "me", "index": 3, "pass_rate": 0.5, "pass_rate_model": "M", "split": "train"}


def test_files_of_an_earlier_call_are_moved_aside_unless_they_come_out_the_same(tmp_path, capsys):
    from jaxgrpo.cli import main

    source, out = tmp_path / "mine.jsonl", tmp_path / "out"

    def problems(truth: str) -> None:
        row = {"data_source": "math__x", "prompt": "1 + 1?", "reward_model": {"ground_truth": truth}}
        source.write_text(json.dumps(row) + "\n")

    problems("2")
    command = ["data", "prepare", str(source), str(out), "--heldout", "0"]
    assert main(command) == 0 and main(command) == 0
    assert not (out / "before-1").exists()
    before = (out / "train.parquet").read_bytes()
    problems("3")
    capsys.readouterr()
    assert main(command) == 0
    assert f"moved     train.parquet of an earlier call to {out / 'before-1'}" in capsys.readouterr().out
    assert (out / "before-1" / "train.parquet").read_bytes() == before != (out / "train.parquet").read_bytes()
