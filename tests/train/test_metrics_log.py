"""metrics.jsonl: what a resumed run cuts, what it keeps, and that every line is strict JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.train.metrics import CompilationCounter, MetricsLog, damage, is_timing_key, read_metrics, with_checksum

LINES = [b'{"step": 0, "test_loss": 0.75}\n', b'{"step":1,  "kl": 1e-05}\n', b'{"step": 2, "kl": 0.5}\n', b'{"step": 3}\n']


@pytest.mark.parametrize("step, kept", [(-1, 0), (0, 1), (1, 2), (3, 4), (99, 4)])
def test_lines_of_later_steps_are_cut_and_the_others_kept_byte_for_byte(tmp_path, step, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES))
    assert MetricsLog(path).cut_after(step) == len(LINES) - kept
    assert path.read_bytes() == b"".join(LINES[:kept])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("end", range(1, len(LINES[3]) - 1))
def test_a_line_torn_anywhere_is_cut(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES[:3]) + LINES[3][:end])
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2]
    assert MetricsLog(path).cut_after(3) == 1
    assert path.read_bytes() == b"".join(LINES[:3])


def test_a_line_without_its_newline_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(LINES)[:-1])
    log = MetricsLog(path)
    assert log.cut_after(3) == 0
    log.append({"step": 4})
    assert [record["step"] for record in log.read()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "rubbish", [b"\n", b"7\n", b"[]\n", b"{}\n", b'{"step": null}\n', b"\0\0\0\0", b'{"s\xff\xfe', b"\xe2\x82"]
)
def test_lines_that_are_no_record_are_cut(tmp_path, rubbish):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES[0] + rubbish)
    assert [record["step"] for record in read_metrics(path)] == [0]
    assert MetricsLog(path).cut_after(5) == 1
    assert path.read_bytes() == LINES[0]


def test_a_missing_file_has_no_lines_and_nothing_to_cut(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.cut_after(3) == 0
    assert log.read() == []


def test_appended_records_read_back_and_numbers_that_json_lacks_become_null(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    records = [{"step": 0, "name": "Qwen/…", "mfu": 0.25}, {"step": 1, "mfu": float("nan"), "kl": float("inf"), "n": 10**13}]
    for record in records:
        log.append(record)
    assert log.read() == [records[0], {"step": 1, "mfu": None, "kl": None, "n": 10**13}]
    for line in log.path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_timing_keys_are_the_ones_of_the_contract():
    timing = ["step_s", "rollout_s", "rollout_tokens_per_s", "update_tokens_per_s", "update_bytes_per_s"]
    timing += ["mfu", "mfu_full_attention", "compilations"]
    assert all(map(is_timing_key, timing))
    assert not any(map(is_timing_key, ["step", "samples", "tokens", "kl", "compute_flops", "grad_norm", "test_loss"]))


def test_the_counter_counts_new_programs_only():
    counter = CompilationCounter()
    triple = jax.jit(lambda x: 3 * x + 1)
    values = [jnp.asarray(np.zeros(n, np.float32)) for n in (3, 5)]
    before = counter.count
    triple(values[0]), triple(values[0])
    assert counter.count == before + 1
    triple(values[1])
    assert counter.count == before + 2


def logged(path, steps) -> list[bytes]:
    log = MetricsLog(path)
    for step in steps:
        log.append(with_checksum({"step": step, "kl": float("nan") if step == 1 else 0.1 * step, "step_s": 2.5}))
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda lines: lines, []),
        (lambda lines: [*lines, b'{"step": 6, "k'], []),  # torn by a kill
        (lambda lines: [*lines[:2], lines[2].replace(b"2.5", b"9.5"), *lines[3:]], []),  # seconds are not protected
        (lambda lines: [*lines[:2], *lines[4:]], ["no line of step 2 to 3"]),
        (lambda lines: lines[1:4], ["no line of step 0, 4 to 5"]),
        (lambda lines: [], ["no line of step 0 to 5"]),
        (lambda lines: [*lines[:4], lines[4].replace(b"0.4", b"0.5"), lines[5]], ["line 5 (step 4) was changed"]),
        (lambda lines: [*lines[:4], lines[4].replace(b"kl", b"kL"), lines[5]], ["line 5 (step 4) was changed"]),
        (lambda lines: [*lines[:4], lines[4][1:], lines[5]], ["line 5 is no record", "no line of step 4"]),
        (lambda lines: [*lines[:4], b"\xff" + lines[4], lines[5]], ["line 5 is no record", "no line of step 4"]),
        (lambda lines: [line.partition(b', "crc32"')[0] + b"}\n" for line in lines], []),  # of before
    ],
)
def test_lost_and_garbled_lines_are_named_with_their_place(change, found, tmp_path):
    lines = logged(tmp_path / "metrics.jsonl", range(6))
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(change(lines)))
    said = damage(tmp_path / "metrics.jsonl", 5)
    assert len(said) == len(found) and all(map(str.startswith, said, found)), said


def test_a_garbled_line_between_those_that_stay_is_not_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LINES[0] + b"rubbish\n" + LINES[2] + b"more\n" + LINES[3])
    assert MetricsLog(path).cut_after(2) == 2
    assert path.read_bytes() == LINES[0] + b"rubbish\n" + LINES[2]


def test_the_checksum_of_a_line_is_that_of_what_two_runs_of_a_seed_have_in_common():
    one, two = (with_checksum({"step": 1, "kl": 0.5, "step_s": s, "mfu": s, "compilations": int(s)}) for s in (1.0, 2.0))
    assert one["crc32"] == two["crc32"] != with_checksum({"step": 1, "kl": 0.25})["crc32"]
    assert is_timing_key("crc32")  # the figures it is of may differ between meshes by rounding
