"""A fit says of every run what was changed on the way, and leaves out what a run has moved aside."""

import json

import scaling
from scaling.history import changes


def write_run(folder, losses=(0.9, 0.8, 0.7, 0.6)):
    folder.mkdir(parents=True)
    lines = [
        {"model_family": "m", "n_params": 1e6, "step": s, "samples": 8 * s, "compute_flops": 1e6 * s, "test_loss": loss}
        for s, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_history(folder, *events):
    (folder / "history.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "resu')


def resume(step, *changed, accepted=()):
    return {"event": "resume", "step": step, "changes": list(changed), "accepted": list(accepted)}


def test_a_resume_undoes_the_changes_at_and_after_its_step_and_a_start_all(tmp_path):
    write_history(tmp_path, resume(4, "seed: 0 -> 1"), {"event": "start", "step": 0}, resume(2, "a"), resume(6, "b"), resume(4))
    assert changes(tmp_path) == [(2, ["a"])]
    write_history(tmp_path, resume(4, "a", accepted=["b"]), resume(4, "c"))
    assert changes(tmp_path) == [(4, ["c"])]
    assert changes(tmp_path / "none") == []


def test_a_fit_tells_of_a_run_that_was_changed_and_reads_no_earlier_start(tmp_path):
    write_run(tmp_path / "runs" / "a")
    write_run(tmp_path / "runs" / "a" / "before-1", (0.5, 0.4))
    write_history(tmp_path / "runs" / "a", resume(2, "optim.lr: 1e-06 -> 2e-06"))
    runs = scaling.load(tmp_path / "runs")
    assert [curve.loss.min() for curve in runs] == [0.6]
    (told,) = [note for note in runs.notes if "changed" in note]
    assert told.startswith(f"{tmp_path / 'runs' / 'a'}: changed after step 2 (optim.lr: 1e-06 -> 2e-06)")
