"""Grading in processes that can be killed, while the caller does something else."""

import contextlib
import json
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence

from jaxgrpo.machine import usable_cores
from jaxgrpo.reward.grade import Grade
from jaxgrpo.reward.processes import Nursery, NurseryError, Worker
from jaxgrpo.reward.router import grader_of, marked
from jaxgrpo.reward.sandbox import Level
from jaxgrpo.reward.worker import OUT_OF_MEMORY

Item = tuple[str, str, object, object]

_CHUNK = 32  # items per request at most: small enough that a slow item delays few others
_RESTARTS = 3  # nurseries that may end one after another without one grade in between


class _Task:
    __slots__ = ("payload", "grade", "retry", "_pair")

    def __init__(self, payload: str = "", grade: Grade | None = None) -> None:
        self.payload = payload
        self.grade = grade
        self.retry = False
        self._pair: Hashable = None

    @property
    def pair(self) -> Hashable:
        """What decides the grade, the answer and the truth; worked out only when something has failed."""
        if self._pair is None:
            source, response, truth, extra = json.loads(self.payload)
            decisive = grader_of(source).decisive(response, truth, extra)
            self._pair = source, json.dumps(decisive)
        return self._pair


class GraderPool:
    """Long-lived grader processes with limits per item; a context manager.

    workers: processes, 0 = one per core this process may use. cpu_seconds: processor time per item, enforced by the
    kernel in the worker. wall_seconds: elapsed time per item, the backstop. memory_bytes: address space per process. sandbox:
    at which level graders run a model's code (see `sandbox`), to which the limits of the sandbox apply instead.

    An item that hits a limit, or whose process dies, costs itself only: the process is replaced, the items behind it
    go to another one, and the item itself is tried once more in a fresh process, beside the others. One worker, where
    there are several, never takes such retries. If that fails too its Grade is 0.0 with an error, and so is that of every
    item with the same answer and truth until the next `drain`, or the end of `grade`, without being tried. No exception
    of a grader ever becomes a score. Grades do not depend on the number of workers or on the order of the items.

    Trusted graders (see `router.Grader`) run in the calling process; the workers start with the first other item.
    Workers import no jax and end with the process that owns the pool, even when that is killed.
    """

    def __init__(
        self,
        workers: int = 0,
        cpu_seconds: float = 5.0,
        wall_seconds: float = 60.0,
        memory_bytes: int = 2 << 30,
        sandbox: Level = "strong",
    ) -> None:
        if workers < 0 or cpu_seconds <= 0 or wall_seconds <= 0 or memory_bytes < 1 << 28:
            raise ValueError(
                "workers must be >= 0, cpu_seconds and wall_seconds > 0, memory_bytes at least 256 MiB; got "
                f"{workers}, {cpu_seconds}, {wall_seconds}, {memory_bytes}"
            )
        self._count = workers or len(usable_cores())
        self._limits = cpu_seconds, wall_seconds, memory_bytes
        self.sandbox = sandbox
        self._changed = threading.Condition()
        self._incoming: deque[_Task] = deque()
        self._named: dict[Hashable, _Task] = {}
        self._failed_pairs: dict[Hashable, str] = {}  # why both tries of them failed, since the last `drain`
        self._failure: BaseException | None = None
        self._closed = False
        self._thread: threading.Thread | None = None
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, key: Hashable, item: Item) -> None:
        """Start grading `item` = (data_source, response, ground_truth, extra_info) under `key`; returns at once.

        Raises ValueError for an unknown data source or a key that is still in use, TypeError for an item that is not
        text and plain data, RuntimeError after `close`.
        """
        if key in self._named:
            raise ValueError(f"key {key!r} was submitted before and not drained yet")
        self._named[key] = self._start([item])[0]

    def finished(self) -> dict[Hashable, Grade]:
        """The grades that have arrived since they were submitted, by key, without waiting; each is handed out once."""
        with self._changed:
            done = {key: task.grade for key, task in self._named.items() if task.grade is not None}
        for key in done:
            del self._named[key]
        return done

    def drain(self) -> dict[Hashable, Grade]:
        """Wait for everything submitted and not handed out yet; its grades by key, in the order of submission."""
        named, self._named = self._named, {}
        return dict(zip(named, self._wait_and_forget(list(named.values())), strict=True))

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """Grade `items` and wait; grades in their order. Raises as `submit`."""
        return self._wait_and_forget(self._start(items))

    def close(self) -> None:
        """End all processes. Items that are still being graded are dropped. May be called twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
        if self._thread:
            self._wake()
            self._thread.join()
        self._wake_read.close()
        self._wake_write.close()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that run now, for monitoring."""
        return [worker.pid for worker in list(self._dispatcher.workers)] if self._thread else []

    def _start(self, items: Sequence[Item]) -> list[_Task]:
        tasks = [_task(*item) for item in items]
        remote = [task for task in tasks if task.grade is None]
        with self._changed:
            if self._closed:
                raise RuntimeError("the grader pool is closed")
            if self._failure:
                raise RuntimeError(f"grading stopped: {self._failure}") from self._failure
            self._incoming.extend(remote)
            if remote and not self._thread:
                self._dispatcher = _Dispatcher(self, self._count, *self._limits)
                self._thread = threading.Thread(target=self._dispatch, name="graders", daemon=True)
                self._thread.start()
        if remote:
            self._wake()
        return tasks

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # as many bytes as fit are unread: the dispatcher wakes anyway
            self._wake_write.send(b"x")

    def _dispatch(self) -> None:
        try:
            self._dispatcher.run()
        except BaseException as error:  # handed to whoever waits
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _wait_and_forget(self, tasks: list[_Task]) -> list[Grade]:
        grades = self._wait(tasks)
        with self._changed:
            self._failed_pairs.clear()
        return grades

    def _wait(self, tasks: list[_Task]) -> list[Grade]:
        with self._changed:
            for task in tasks:
                while task.grade is None:
                    if self._failure or self._closed:
                        raise RuntimeError(f"grading stopped: {self._failure or 'the pool was closed'}") from self._failure
                    self._changed.wait()
        return [task.grade for task in tasks]


def _task(data_source: str, response: str, ground_truth: object, extra_info: object = None) -> _Task:
    grader = grader_of(data_source)
    if not isinstance(response, str):
        raise TypeError(f"the response must be text, got {type(response).__name__}")
    if not grader.trusted:
        return _Task(json.dumps([data_source, response, ground_truth, extra_info], default=_plain))
    try:
        score, figures = marked(data_source, response, ground_truth, extra_info)
        return _Task(grade=Grade(score, None, figures))
    except Exception as error:  # reported with the item; it never becomes a score
        return _Task(grade=Grade(0.0, f"{type(error).__name__}: {error}"[:300]))


def _plain(value: object) -> object:
    """numpy arrays and scalars, as parquet readers return them, for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"an item must be plain data (text, numbers, lists, dicts), got {type(value).__name__}")


class _Dispatcher:
    """The pool's thread: hands items to workers, collects grades, enforces the wall limit, replaces the dead."""

    def __init__(self, pool: GraderPool, count: int, cpu_seconds: float, wall_seconds: float, memory_bytes: int) -> None:
        self._pool = pool
        self._count = count
        self._cpu_seconds = cpu_seconds
        self._wall_seconds = wall_seconds
        self._memory_bytes = memory_bytes
        self._memory_reason = f"memory limit of {memory_bytes >> 20} MiB exceeded"
        self._waiting: deque[_Task] = deque()
        self._retries: deque[_Task] = deque()
        self._twins: dict[Hashable, list[_Task]] = {}  # by pair: items that wait for the retry of one like them
        self._restarts = 0
        self.workers: list[Worker] = []

    def run(self) -> None:
        """Serve the pool until it closes."""
        self._nursery = Nursery(self._pool.sandbox)
        try:
            with selectors.DefaultSelector() as self._selector:
                self._selector.register(self._pool._wake_read, selectors.EVENT_READ)
                while not self._pool._closed:
                    try:
                        self._turn()
                    except NurseryError:
                        self._replace_nursery()
        finally:
            for worker in self.workers:
                worker.connection.close()
            self._nursery.close()

    def _turn(self) -> None:
        with self._pool._changed:
            self._waiting.extend(self._pool._incoming)
            self._pool._incoming.clear()
        self._hand_out()
        busy = [worker.deadline for worker in self.workers if worker.tasks]
        timeout = max(0.0, min(busy) - time.monotonic()) if busy else 0.0 if self._waiting or self._retries else None
        ready = self._selector.select(timeout)
        now = time.monotonic()
        late = [worker for worker in self.workers if worker.tasks and worker.deadline <= now]  # also where a reply just came
        for key, _ in ready:
            if key.fileobj is self._pool._wake_read:
                self._pool._wake_read.recv(4096)
            elif key.data in self.workers and key.data not in late:
                self._collect(key.data)
        for worker in late:
            self._lose(worker, f"wall limit of {self._wall_seconds:g} s exceeded")

    def _hand_out(self) -> None:
        if self._waiting or self._retries:
            while len(self.workers) < self._count:
                self._fork()
            size = max(1, min(_CHUNK, len(self._waiting) // (4 * self._count)))
            for worker in [worker for worker in self.workers if not worker.tasks]:
                chunk = self._chunk(size)
                if chunk:
                    self._send(worker, chunk)
        retrying = sum(worker.tasks[0].retry for worker in self.workers if worker.tasks)
        for worker in [worker for worker in self.workers if not worker.tasks]:
            if self._retries and retrying < max(1, self._count - 1):
                if worker.used:  # a fresh process: the second verdict owes nothing to other items
                    self._remove(worker)
                    worker = self._fork()
                self._send(worker, [self._retries.popleft()])
                retrying += 1

    def _chunk(self, size: int) -> list[_Task]:
        """The next `size` waiting items, without those that failed before and those that wait for a retry's outcome."""
        chunk: list[_Task] = []
        while self._waiting and len(chunk) < size:
            task = self._waiting.popleft()
            known = not task.retry and bool(self._twins or self._pool._failed_pairs)
            reason = self._pool._failed_pairs.get(task.pair) if known else None
            if reason is not None:
                self._publish([(task, Grade(0.0, reason))])
            elif known and task.pair in self._twins:
                self._twins[task.pair].append(task)
            else:
                chunk.append(task)
        return chunk

    def _fork(self) -> Worker:
        worker = self._nursery.fork(self._cpu_seconds, self._memory_bytes)
        self.workers.append(worker)
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)
        return worker

    def _send(self, worker: Worker, tasks: list[_Task]) -> None:
        request = ",".join(f"[{number},{task.payload[1:]}" for number, task in enumerate(tasks))
        worker.tasks = tasks
        if worker.send(f"[{request}]\n".encode(), self._wall_seconds):
            worker.deadline = time.monotonic() + self._wall_seconds
        else:
            self._lose(worker, "the grader process did not take the item")

    def _collect(self, worker: Worker) -> None:
        replies = worker.receive()
        if replies is None:
            self._lose(worker, "")
            return
        finished = []
        memory = False
        for _, score, error, figures in replies:
            task = worker.tasks.pop(0)
            if error and error.startswith("MemoryError"):
                memory = True
                self._failed(task, self._memory_reason)
            else:
                finished.append((task, Grade(score, error, figures)))
                self._release(task)
        worker.deadline = time.monotonic() + self._wall_seconds
        self._restarts = 0
        self._publish(finished)
        if memory:  # what it still holds must not starve the next item
            self._waiting.extendleft(reversed(worker.tasks))
            self._remove(worker)

    def _lose(self, worker: Worker, reason: str) -> None:
        """Replace a dead or late worker: its first unanswered item is the culprit, the others start again."""
        culprit, *others = worker.tasks or [None]
        self._waiting.extendleft(reversed(others))
        worker.tasks = []
        try:
            code = self._remove(worker)
        except NurseryError:  # the whole nursery went, which is no fault of the item
            self._waiting.extendleft([culprit] if culprit else [])
            raise
        if code == -signal.SIGPROF:
            reason = f"CPU limit of {self._cpu_seconds:g} s exceeded"
        elif code == OUT_OF_MEMORY:
            reason = self._memory_reason
        elif not reason:
            reason = f"the grader process ended with exit code {code}; negative: by that signal"
        if culprit is not None:
            self._failed(culprit, reason)

    def _failed(self, task: _Task, reason: str) -> None:
        if task.retry:
            with self._pool._changed:
                self._pool._failed_pairs[task.pair] = reason
            self._release(task)
            self._publish([(task, Grade(0.0, reason))])
        elif task.pair in self._twins:
            self._twins[task.pair].append(task)
        else:
            task.retry = True
            self._twins[task.pair] = []
            self._retries.append(task)

    def _release(self, task: _Task) -> None:
        """What waited for the outcome of `task`'s retry is graded in turn: at once where that failed."""
        if task.retry:
            self._waiting.extend(self._twins.pop(task.pair, ()))

    def _publish(self, finished: list[tuple[_Task, Grade]]) -> None:
        with self._pool._changed:
            for task, grade in finished:
                task.grade = grade
                task.payload = ""
            self._pool._changed.notify_all()

    def _remove(self, worker: Worker) -> int:
        self._selector.unregister(worker.connection)
        self.workers.remove(worker)
        return self._nursery.stop(worker)

    def _replace_nursery(self) -> None:
        """A new nursery after the old one was killed from outside; its workers went with it."""
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise NurseryError("the grader processes end again and again before grading anything; see stderr")
        for worker in self.workers:
            if worker.connection.fileno() >= 0:
                self._selector.unregister(worker.connection)
                worker.connection.close()
            self._waiting.extendleft(reversed(worker.tasks))
        self.workers.clear()
        self._nursery.close()
        self._nursery = Nursery(self._pool.sandbox)
