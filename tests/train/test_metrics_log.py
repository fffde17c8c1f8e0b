"""metrics.jsonl: what a resumed run cuts, what it keeps, and that every line is strict JSON."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrpo.train.metrics import CompilationCounter, MetricsLog, is_timing_key, read_metrics

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
