"""Run the parts of a long measurement, each in its own process with a limit of time.

An illegal access on a GPU spoils every later call of its process, and a hang never ends. So each part has a process,
which reports each step as it begins and ends. If the process dies or falls silent, the step under way is recorded as
failed, and another process resumes the part after that step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

MAX_PROCESSES = 8  # for one part
START_S = 120.0  # a process may take this long to import torch
GRACE_S = 10.0  # a step under way when the time is up may take this long to end
ENDED = ("done", "failed")
LONGEST_REASON = 600

# The state of a part: status ("not done", or one of ENDED, "failed" with a reason), seconds, rows, the results of its
# finished steps, the reasons of failed ones, and who took no part.
Record = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """`measure(reporter, **arguments)`, where `measure` is importable by name."""

    name: str
    measure: Callable[..., None]
    arguments: dict[str, Any] = field(default_factory=dict)
    needs_s: float = 5.0  # not started with less time than this
    limit_s: float = 60.0  # of one step


class Reporter:
    """A part's way to report its steps and results, in its process."""

    def __init__(self, send: Callable[[tuple[Any, ...]], None], record: Record) -> None:
        self._send = send
        self._finished: dict[str, Any] = record["steps"]
        self._failed: dict[str, str] = record["failures"]

    def attempt(self, step: str, call: Callable[[], Any], kept: bool = True, spoils: bool = False) -> Any:
        """Return what `call` returns, or None if it raised, now or in an earlier process.

        Args:
            step: its name, unique in the part.
            call: returns something other than None. If kept, it goes into the JSON, and a list is rows.
            kept: use an earlier process's result instead of calling again (for rows, their number).
            spoils: an exception makes this process unfit for what follows.
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
                os._exit(0)  # at once: destructors of a spoilt context can hang
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
    torch = sys.modules.get("torch")  # a part that has not imported it uses no GPU
    try:
        if torch and torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def new_record() -> Record:
    return {"status": "not done", "seconds": 0.0, "rows": [], "steps": {}, "failures": {}, "not_run": {}}


def run(parts: Sequence[Part], records: dict[str, Record], until: float, save: Callable[[], None]) -> None:
    """Do the parts in order until the time `until`; call `save` whenever `records` changed."""
    for part in parts:
        records.setdefault(part.name, new_record())
    waiting = [part for part in parts if records[part.name]["status"] not in ENDED]
    ahead = None
    try:
        for number, part in enumerate(waiting):
            record, start = records[part.name], time.time()
            if start + part.needs_s > until:
                break
            process = ahead or _Process(part)
            # It imports torch while this part is measured, which saves seconds for each part.
            ahead = _Process(waiting[number + 1]) if number + 1 < len(waiting) else None
            for _ in range(MAX_PROCESSES):
                process = process or _Process(part)
                if not process.watch(record, until, save) or time.time() + part.needs_s > until:
                    break
                process = None
            else:
                record |= {"status": "failed", "reason": f"{MAX_PROCESSES} processes ended in it"}
            record["seconds"] = round(record["seconds"] + time.time() - start, 1)
            print(f"{record['seconds']:6.1f} s  {record['status']}: {part.name}", flush=True)
            save()
    finally:
        if ahead:
            ahead.end()


class _Process:
    """A process that imports what a part needs, then waits for `watch`."""

    def __init__(self, part: Part) -> None:
        self.limit_s = part.limit_s
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, part), daemon=True)
        self.process.start()
        theirs.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def watch(self, record: Record, until: float, save: Callable[[], None]) -> bool:
        """Do the part and record its events; return whether another process should resume it."""
        step, reason, limit = None, None, START_S
        try:
            self.connection.send(record)
            while True:
                left = until + GRACE_S - time.time()
                if not self.connection.poll(max(min(limit, left), 0)):
                    if left <= limit:
                        return False  # out of time; a later run resumes after the finished steps
                    reason = f"silent for {limit:.0f} s"
                    break
                event, *what = self.connection.recv()
                limit = self.limit_s
                if event == "end":
                    record |= {"status": "failed", "reason": what[0]} if what[0] else {"status": "done"}
                    return False
                step = what[0] if event == "begin" else None
                if event in ("failed", "not_run"):
                    record["failures" if event == "failed" else "not_run"][what[0]] = what[1]
                elif event == "finished":
                    is_rows = isinstance(what[1], list)
                    record["rows"] += what[1] if is_rows else []
                    record["steps"][what[0]] = len(what[1]) if is_rows else what[1]
                save()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            if code:
                reason = f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        finally:
            self.end()
        if reason is not None and step is None:
            record |= {"status": "failed", "reason": f"{reason} outside any step"}
            return False
        if reason is not None:
            record["failures"][step] = reason
        return True


def _work(connection: Connection, part: Part) -> None:
    reason = None
    try:
        record = connection.recv()
        connection.send(("ready", None))
        part.measure(Reporter(connection.send, record), **part.arguments)
    except Exception as error:
        reason = reason_of(error)
    connection.send(("end", reason))
