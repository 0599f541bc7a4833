"""Parts of a long run, one after another in a process of their own, so that a crash costs no more than one step.

An illegal access on a GPU spoils every later call of its process, and a hang ends none. So a worker does the parts and
tells each step as it begins; where the worker dies or falls silent, the step it was in is the culprit: it is recorded,
and the next worker goes on behind it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

MAX_WORKERS = 8  # for one part; more crashes than that are not a peer's whim
START_S = 120.0  # a worker may take so long to import torch
GRACE_S = 10.0  # a step that is under way when the time is up may end
ENDED = ("done", "failed")
RESTART = 23  # exit code of a worker that knows itself to be spoilt
LONGEST_REASON = 600

# What came of a part: status ("not done", or one of ENDED, "failed" with a reason), seconds, rows, what its finished
# steps returned, why others failed, and who took no part.
Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """`measure(reporter, **arguments)`, where `measure` is importable by name."""

    name: str
    measure: Callable[..., None]
    arguments: dict[str, Any] = field(default_factory=dict)
    needs_s: float = 5.0  # not begun with less time than this
    limit_s: float = 60.0  # silent for longer, it hangs


class Reporter:
    """What a part uses to tell its steps and results, in the worker."""

    def __init__(self, send: Callable[[tuple[Any, ...]], None], record: Record) -> None:
        self._send = send
        self._finished: dict[str, Any] = record["steps"]
        self._failed: dict[str, str] = record["failures"]

    def attempt(self, step: str, call: Callable[[], Any], kept: bool = True, spoils: bool = False) -> Any:
        """What `call` returns, or None where it raised, now or in an earlier worker.

        Args:
            step: its name, unique in the part.
            call: returns something other than None. Where it is kept, that is for JSON, and a list is rows.
            kept: an earlier worker's result is taken instead of calling again (of rows, their number).
            spoils: an exception leaves this process unfit for what follows.
        """
        if step in self._failed:
            return None
        if kept and step in self._finished:
            return self._finished[step]
        self._send(("begin", step))
        try:
            result = call()
        except Exception as error:
            self._send(("failed", step, reason_of(error)))
            if spoils or not _gpu_answers():
                os._exit(RESTART)  # at once: destructors of a spoilt context can hang
            return None
        self._send(("finished", step, result if kept else None))
        return result

    def finished(self, step: str) -> bool:
        return step in self._finished

    def not_run(self, who: str, reason: str) -> None:
        self._send(("not_run", who, reason))


def reason_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_REASON]


def _gpu_answers() -> bool:
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def new_record() -> Record:
    return {"status": "not done", "seconds": 0.0, "rows": [], "steps": {}, "failures": {}, "not_run": {}}


def run(parts: Sequence[Part], records: dict[str, Record], until: float, save: Callable[[], None]) -> None:
    """Do the parts in their order until the clock says `until`; `save` is called whenever `records` changed."""
    for part in parts:
        records.setdefault(part.name, new_record())
    workers: Counter[str] = Counter()
    while waiting := [part for part in parts if records[part.name]["status"] not in ENDED]:
        if time.time() + waiting[0].needs_s > until:
            break
        stopped_at = _Worker(waiting, records, until, save).watch()
        if stopped_at is not None:
            workers[stopped_at] += 1
            if workers[stopped_at] == MAX_WORKERS and records[stopped_at]["status"] not in ENDED:
                records[stopped_at] |= {"status": "failed", "reason": f"{MAX_WORKERS} processes ended in it"}
        save()


class _Worker:
    """One process, as its parent sees it."""

    def __init__(
        self, parts: Sequence[Part], records: dict[str, Record], until: float, save: Callable[[], None]
    ) -> None:
        self.parts, self.records, self.until, self.save = parts, records, until, save
        self.limits = {part.name: part.limit_s for part in parts}
        self.part: str | None = None
        self.step: str | None = None
        # Not forked: CUDA does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        tasks = [(part, records[part.name]) for part in parts]
        self.process = context.Process(target=_work, args=(theirs, tasks, until), daemon=True)
        self.process.start()
        theirs.close()

    def watch(self) -> str | None:
        """Take in what the worker tells until it ends; the part in which that happened, if one was under way."""
        reason = None
        try:
            while True:
                limit = self.limits[self.part] if self.part else START_S
                left = self.until + GRACE_S - time.time()
                if not self.connection.poll(max(min(limit, left), 0)):
                    # A part that the time cut short goes on behind its finished steps when it is begun again.
                    reason = f"silent for {limit:.0f} s" if limit < left else None
                    return self._ended(reason)
                self._take(*self.connection.recv())
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            if code not in (0, RESTART):
                name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                reason = f"the process ended with {name}"
            return self._ended(reason)
        finally:
            self.process.kill()
            self.process.join()
            self.connection.close()

    def _take(self, event: str, *what: Any) -> None:
        if event == "part":
            self.part, self.begun = what[0], time.time()
            return
        assert self.part is not None
        record = self.records[self.part]
        if event == "begin":
            self.step = what[0]
            return
        if event == "finished":
            step, result = what
            if isinstance(result, list):
                record["rows"] += result
                result = len(result)
            record["steps"][step], self.step = result, None
        elif event == "failed":
            record["failures"][what[0]], self.step = what[1], None
        elif event == "not_run":
            record["not_run"][what[0]] = what[1]
        elif event == "end of part":
            record |= {"status": "failed", "reason": what[0]} if what[0] else {"status": "done"}
            name = self.part
            self._stop_clock()
            print(f"{record['seconds']:6.1f} s  {record['status']}: {name}", flush=True)
        self.save()

    def _stop_clock(self) -> None:
        if self.part is not None:
            record = self.records[self.part]
            record["seconds"] = round(record["seconds"] + time.time() - self.begun, 1)
            self.part = None

    def _ended(self, reason: str | None) -> str | None:
        stopped = self.part
        if reason is not None:
            # One that dies before its first part must not be started for that part again and again.
            stopped = stopped or next(p.name for p in self.parts if self.records[p.name]["status"] not in ENDED)
            if self.step is not None:
                self.records[stopped]["failures"][self.step] = reason
            else:
                self.records[stopped] |= {"status": "failed", "reason": f"{reason} outside any step"}
        self._stop_clock()
        return stopped


def _work(connection: Connection, tasks: list[tuple[Part, Record]], until: float) -> None:
    for part, record in tasks:
        if time.time() + part.needs_s > until:
            break
        connection.send(("part", part.name))
        reason = None
        try:
            part.measure(Reporter(connection.send, record), **part.arguments)
        except Exception as error:
            reason = reason_of(error)
        connection.send(("end of part", reason))
        if reason is not None and not _gpu_answers():
            os._exit(RESTART)
