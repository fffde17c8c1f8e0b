import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxgrpo.reward import Grade, GraderPool

# proving these two equal expands thousands of terms, values alone do not: some 30 s of processor time
SLOW = ("math__slow", r"\boxed{\lfloor(x^2+y^2+z^2+2xy+2yz+2xz)^{30}\rfloor}", r"\lfloor(x+y+z)^{60}\rfloor", None)
RIGHT = Grade(1.0)
WRONG = Grade(0.0)


def maths(answer: str, gold: str) -> tuple:
    return "math__x", f"so \\boxed{{{answer}}}", gold, {"index": 1}


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def pool():
    with GraderPool(workers=2, cpu_seconds=1.0) as pool:
        pool.grade([maths("1", "1")])  # the workers are warm
        yield pool


def test_grades_come_in_the_order_of_the_items(pool):
    items = [maths(str(n), str(n - n % 3)) for n in range(200)]
    assert pool.grade(items) == [RIGHT if n % 3 == 0 else WRONG for n in range(200)]
    assert pool.grade([]) == []


def test_submit_and_drain_return_grades_by_key(pool):
    pool.submit("a", maths("1/2", "0.5"))
    pool.submit(("b", 2), maths("1", "2"))
    pool.submit(3, ("arithmetic", "123", "3", None))
    with pytest.raises(ValueError, match="key 3"):
        pool.submit(3, maths("1", "1"))
    assert pool.grade([maths("7", "7")]) == [RIGHT]  # a batch in between takes nothing from the drain
    assert pool.drain() == {"a": RIGHT, ("b", 2): WRONG, 3: RIGHT}
    assert pool.drain() == {}


def test_grading_goes_on_while_the_caller_does_something_else(pool):
    tasks = []
    for n in range(50):
        pool.submit(n, maths(str(n), str(n)))
        tasks.append(pool._named[n])
    assert wait_until(lambda: all(task.grade == RIGHT for task in tasks), 30)
    assert list(pool.drain()) == list(range(50))


def test_an_item_over_its_cpu_limit_costs_itself_only(pool):
    items = [maths(str(n), str(n)) for n in range(60)]
    items.insert(20, SLOW)
    start = time.monotonic()
    grades = pool.grade(items)
    assert grades[20] == Grade(0.0, "CPU limit of 1 s exceeded")
    assert grades[:20] + grades[21:] == [RIGHT] * 60
    assert time.monotonic() - start < 20  # the limit twice, on a machine that may be busy


def slow(n: int) -> tuple:
    """An item like SLOW that no other n shares."""
    answer = rf"\lfloor(x^2+y^2+z^2+2xy+2yz+2xz)^{{{30 + n}}}\rfloor"
    return "math__slow", f"{n} \\boxed{{{answer}}}", rf"\lfloor(x+y+z)^{{{60 + 2 * n}}}\rfloor", None


def test_a_retry_runs_beside_other_items():
    """With two workers one item fails, and 200 others are done while it is tried again."""
    with GraderPool(workers=2, cpu_seconds=2.0) as pool:
        pool.grade([maths("1", "1")])
        pool.submit("slow", slow(0))
        task = pool._named["slow"]
        assert wait_until(lambda: task.retry, 60)
        start = time.process_time()
        for n in range(200):
            pool.submit(n, maths(str(n), str(n)))
        others = [pool._named[n] for n in range(200)]
        assert wait_until(lambda: all(other.grade == RIGHT for other in others), 60)
        assert task.grade is None and time.process_time() - start < 2
        assert pool.drain()["slow"] == Grade(0.0, "CPU limit of 2 s exceeded")


def test_a_pair_that_failed_is_not_tried_again_before_the_next_step():
    counted: list[int] = []
    with GraderPool(workers=2, cpu_seconds=0.5) as pool:
        pool.grade([maths("1", "1")])
        fork = pool._dispatcher._fork
        pool._dispatcher._fork = lambda: counted.append(1) or fork()
        for n in range(12):
            pool.submit(n, ("math__slow", f"way {n}: {slow(0)[1]}", slow(0)[2], {"index": n}))
        pool.submit("right", maths("2", "2"))
        pool.submit("no box", ("math__slow", "way 1", slow(0)[2], None))
        grades = pool.drain()
        assert grades.pop("right") == RIGHT and grades.pop("no box") == WRONG
        assert grades == {n: Grade(0.0, "CPU limit of 0.5 s exceeded") for n in range(12)}
        # at most one first try in each worker and one retry; a process is replaced after each, and where it is taken fresh
        assert len(counted) <= 6
        counted.clear()
        pool.grade([slow(0)])
        assert counted  # the next step tries it again


def test_an_exception_in_a_grader_is_an_error_and_no_score(pool):
    grades = pool.grade([maths("1", ""), maths("1", "1"), ("arithmetic", "1", "ten", None)])
    assert grades[1] == RIGHT
    for grade in (grades[0], grades[2]):
        assert grade.score == 0.0 and "ValueError" in grade.error and "ground truth" in grade.error


def test_an_unknown_data_source_or_an_item_that_is_not_plain_data_is_refused_at_once(pool):
    with pytest.raises(ValueError, match="no grader"):
        pool.grade([maths("1", "1"), ("unknown", "1", "1", None)])
    with pytest.raises(TypeError, match="text"):
        pool.submit("k", ("math__x", 5, "5", None))
    with pytest.raises(TypeError, match="plain data"):
        pool.submit("k", ("math__x", "5", "5", object()))
    assert pool.drain() == {}


def test_numpy_references_are_taken_as_plain_data(pool):
    numpy = pytest.importorskip("numpy")
    gold = {"header": numpy.array(["n", "pet"]), "rows": numpy.array([["1", "cat"]])}
    response = "<answer>{'header': ['n', 'pet'], 'rows': [['1', 'cat']]}</answer>"
    item = ("logic__zebra_puzzle_dataset", response, gold, {"index": numpy.int64(3)})
    table = Grade(1.0, figures={"cell_accuracy": 1.0})
    assert pool.grade([item, ("math__x", r"\boxed{5}", numpy.float64(5.0), None)]) == [table, RIGHT]


def test_strange_text_reaches_the_grader_unchanged(pool):
    items = [maths("1\x002", "12"), maths("\ud800", "5"), maths("５", "5"), maths("5\n", "5"), maths("\u202e5", "5")]
    assert [grade.score for grade in pool.grade(items)] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert not any(grade.error for grade in pool.grade(items))


def test_the_number_of_workers_and_the_order_of_items_change_no_grade(pool):
    items = [maths(a, g) for a in ("1/2", r"\sqrt{4}", "x+1", "(1,2)") for g in ("0.5", "2", "1+x", "1<x<2", "(2,1)")]
    expected = pool.grade(items)
    order = random.Random(0).sample(range(len(items)), len(items))
    with GraderPool(workers=1) as single:
        shuffled = single.grade([items[n] for n in order])
    assert shuffled == [expected[n] for n in order]


def test_a_killed_worker_is_replaced_and_no_grade_changes(pool):
    done = threading.Event()

    def assassinate():
        generator = random.Random(1)
        for _ in range(10):
            pids = pool.worker_pids()
            if pids and not done.wait(0.1):
                with contextlib.suppress(ProcessLookupError):  # the pool may have replaced it meanwhile
                    os.kill(generator.choice(pids), signal.SIGKILL)

    killer = threading.Thread(target=assassinate)
    killer.start()
    items = [maths(rf"\sqrt{{{n}}}+\sqrt{{{n + 1}}}", rf"\sqrt{{{n + 1}}}+\sqrt{{{n}}}") for n in range(300)]
    try:
        grades = pool.grade(items)
    finally:
        done.set()
        killer.join()
    assert [grade.score for grade in grades] == [1.0] * 300
    assert not any(grade.error for grade in grades)


def test_a_killed_nursery_is_replaced(pool):
    pool.grade([maths("1", "1")])
    parent = Path(f"/proc/{pool.worker_pids()[0]}/stat").read_text().rpartition(")")[2].split()[1]
    os.kill(int(parent), signal.SIGKILL)
    assert pool.grade([maths(str(n), str(n)) for n in range(100)]) == [RIGHT] * 100


def test_an_item_over_the_wall_or_the_memory_limit_costs_itself_only():
    huge = ("math__x", "x" * (150 << 20), "5", None)
    with GraderPool(workers=1, cpu_seconds=60.0, wall_seconds=2.0, memory_bytes=512 << 20) as pool:
        grades = pool.grade([maths("1", "1"), huge, SLOW, maths("2", "2")])
    assert grades[0] == grades[3] == RIGHT
    assert grades[1] == Grade(0.0, "memory limit of 512 MiB exceeded")
    assert grades[2] == Grade(0.0, "wall limit of 2 s exceeded")


def test_arithmetic_is_graded_in_the_calling_process_in_milliseconds():
    with GraderPool() as pool:
        start = time.monotonic()
        grades = pool.grade([("arithmetic", "5678", "8", None), ("arithmetic", "5678", "7", None)] * 128)
        assert time.monotonic() - start < 0.1
        assert grades == [RIGHT, WRONG] * 128
        assert pool.worker_pids() == []


def test_a_closed_pool_leaves_no_process_and_takes_no_item():
    with GraderPool(workers=2) as pool:
        pool.grade([maths("1", "1")])
        pids = pool.worker_pids()
        pool.submit("late", SLOW)
        assert pids and all(map(runs, pids))
    assert wait_until(lambda: not any(map(runs, pids)), 10)
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade([maths("1", "1")])


def test_limits_that_make_no_sense_are_refused():
    for limits in ({"workers": -1}, {"cpu_seconds": 0}, {"wall_seconds": -1}, {"memory_bytes": 1}):
        with pytest.raises(ValueError, match="got"):
            GraderPool(**limits)


TRAINER = r"""
import sys
import time
import jax
from jaxgrpo.reward import GraderPool

pool = GraderPool(workers=2, cpu_seconds=600.0, wall_seconds=600.0)
assert [grade.score for grade in pool.grade([("math__x", r"\boxed{0.5}", r"\frac12", None)] * 64)] == [1.0] * 64
for key in range(2):
    pool.submit(key, ("math__x", r"\boxed{\lfloor(x^2+y^2+z^2+2xy+2yz+2xz)^{40}\rfloor}", r"\lfloor(x+y+z)^{80}\rfloor", None))
time.sleep(0.5)
print(*pool.worker_pids(), flush=True)
time.sleep(600)
"""


def test_workers_load_no_jax_and_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(runs, pids))
        nursery = int(Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1])
        assert "jaxlib" in Path(f"/proc/{parent.pid}/maps").read_text()
        for pid in (*pids, nursery):
            assert "jaxlib" not in Path(f"/proc/{pid}/maps").read_text()
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_until(lambda: not any(map(runs, [*pids, nursery])), 10)
