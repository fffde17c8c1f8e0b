"""`jaxgrpo data benchmarks`: the files of all suites, brought from a folder of published ones."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.suite import known_suites, load_suite
from jaxgrpo.cli import main
from jaxgrpo.data import load_problems
from tests.data.published import DATA, path

SUITES = [name for name in known_suites() if name != "arithmetic"]


@pytest.fixture
def source():
    path("benchmarks/gsm8k.parquet")
    return str(DATA)


def lines(text):
    return {line.split()[0]: line for line in text.splitlines()}


def test_all_suites_are_brought_to_where_an_evaluation_looks_and_a_second_call_finds_them(
    source, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    source = os.path.relpath(source, tmp_path)
    assert main(["data", "benchmarks", "data/benchmarks", "--from", source]) == 0
    said = lines(capsys.readouterr().out)
    assert sorted(said) == SUITES and all("problems from" in line for line in said.values())
    for name in SUITES:  # eval.data is "data" by default
        assert load_suite(name).problems("data") == load_suite(name).problems(source), name
    assert len(load_problems("data/benchmarks/math__math_500.parquet")) == 500
    before = {file.name: file.stat().st_mtime_ns for file in Path("data/benchmarks").iterdir()}
    assert len(before) == len(SUITES)
    assert main(["data", "benchmarks", "data/benchmarks"]) == 0  # and no hub is asked
    assert all("there already" in line for line in lines(capsys.readouterr().out).values())
    assert {file.name: file.stat().st_mtime_ns for file in Path("data/benchmarks").iterdir()} == before


def test_what_is_cut_short_or_has_other_columns_is_replaced_and_what_is_missing_is_told(source, tmp_path, capsys):
    folder, few = tmp_path / "out", tmp_path / "few"
    few.mkdir()
    for name in ("amc2023", "aime2024", "gsm8k"):
        shutil.copy(path(f"benchmarks/{name}.parquet"), few)
    whole = pq.read_table(few / "gsm8k.parquet")
    pq.write_table(whole.slice(0, 1000), few / "gsm8k.parquet")  # a download that lost rows
    folder.mkdir()
    (folder / "amc2023.parquet").write_bytes((few / "amc2023.parquet").read_bytes()[:5000])
    pq.write_table(whole.select(["prompt"]), folder / "aime2024.parquet")
    assert main(["data", "benchmarks", str(folder), "--from", str(few)]) == 1
    captured = capsys.readouterr()
    said = lines(captured.out)
    assert "40 problems" in said["amc2023"] and "in place of one that was no use" in said["amc2023"]
    assert "not readable as parquet" in said["amc2023"] and "no column" in said["aime2024"]
    assert len(load_suite("amc2023").problems(str(folder))) == 40 and len(load_suite("aime2024").problems(str(folder))) == 30
    assert "MISSING" in said["gsm8k"] and "has 1000 problems, GSM8K has 1319" in said["gsm8k"]
    assert "there is no math__math_500.parquet in" in said["math_500"]
    assert "jaxgrpo data prepare" in said["heldout"] and "MISSING" not in said["heldout"]
    assert captured.err.count("\n") == 1 and "5 of 8 suites are missing" in captured.err
    assert sorted(file.name for file in folder.iterdir()) == ["aime2024.parquet", "amc2023.parquet"]
    assert main(["data", "benchmarks", str(folder), "--from", str(DATA)]) == 0
    assert "there already" in lines(capsys.readouterr().out)["amc2023"]


def test_a_source_that_is_no_folder_is_refused(tmp_path, capsys):
    assert main(["data", "benchmarks", str(tmp_path / "out"), "--from", str(tmp_path / "absent")]) == 1
    assert "--from" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_a_network_the_hub_is_asked_once_and_the_way_out_is_told(tmp_path):
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-m", "jaxgrpo.cli", "data", "benchmarks", str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = lines(done.stdout)
    assert "check the network and the name" in said["aime2024"]
    assert all("was not asked for" in said[name] for name in SUITES if name not in ("aime2024", "heldout"))
    assert "7 of 8 suites are missing" in done.stderr and "--from" in done.stderr


def test_a_count_that_is_no_number_is_refused(tmp_path):
    (tmp_path / "s.yaml").write_text("files: [a.parquet]\ncount: many\n")
    with pytest.raises(ValueError, match="its keys are title, files"):
        load_suite(str(tmp_path / "s.yaml"))
