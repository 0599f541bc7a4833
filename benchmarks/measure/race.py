"""Time calls by turns, A B C, C B A, A B C, ..., so that a slow minute of the machine slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

Call = Callable[[], object]
MAX_LAPS = 30
MAX_TURNS = 5


@dataclass(frozen=True)
class Timing:
    """The times of one contestant, in seconds."""

    laps: list[list[float]]  # [lap][turn]

    def per_call(self, calls: int) -> Timing:
        """Return the times of one call, if each turn timed several."""
        return Timing([[seconds / calls for seconds in lap] for lap in self.laps])

    @property
    def samples(self) -> list[float]:
        return [seconds for lap in self.laps for seconds in lap]

    def speedup_over(self, other: Timing) -> tuple[float, float, float]:
        """Return how many times faster than `other`: the median over the laps, and the quartiles."""
        ratios = [median(theirs) / median(mine) for mine, theirs in zip(self.laps, other.laps, strict=True)]
        return middle_half(ratios)


def middle_half(numbers: list[float]) -> tuple[float, float, float]:
    """Return the median, the first and the third quartile."""
    if len(numbers) == 1:
        return numbers[0], numbers[0], numbers[0]
    low, middle, high = quantiles(numbers, n=4, method="inclusive")
    return middle, low, high


def cpu_stopwatch(call: Call) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class CudaStopwatch:
    """GPU seconds of one call, between two events, with a cold L2 cache.

    The cache is filled by reading: after writes, its dirty lines would go to memory while the call is timed. If Python
    enqueues a call more slowly than the GPU runs it, this is Python's time.
    """

    def __init__(self) -> None:
        size = torch.cuda.get_device_properties("cuda").L2_cache_size
        self.flush = torch.zeros(2 * size // 4, dtype=torch.float32, device="cuda")
        self.total = torch.empty((), dtype=torch.float32, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call) -> float:
        self._enqueue(call)
        return self._seconds()

    def _enqueue(self, call: Call) -> None:
        torch.sum(self.flush, dim=0, out=self.total)
        self.start.record()
        call()
        self.end.record()

    def _seconds(self) -> float:
        self.end.synchronize()
        return self.start.elapsed_time(self.end) / 1e3


class KernelStopwatch(CudaStopwatch):
    """GPU seconds of one call's kernels, without Python and launches, also for calls that no graph can hold.

    The GPU sleeps until everything is enqueued; the sleep grows until it is long enough. A call that synchronises with
    the GPU is never enqueued in time and raises a RuntimeError.
    """

    LONGEST_S = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.sleep_s = 2e-4
        self.cycles_per_s = self._clock()

    def __call__(self, call: Call) -> float:
        sleep_s = self.sleep_s
        while sleep_s <= self.LONGEST_S:
            torch.cuda._sleep(int(sleep_s * self.cycles_per_s))
            self._enqueue(call)
            slept_through = not self.start.query()
            seconds = self._seconds()
            if slept_through:
                self.sleep_s = sleep_s
                return seconds
            sleep_s *= 2
        raise RuntimeError(f"Python enqueues the call in more than {self.LONGEST_S} s, or the call waits for the GPU")

    def _clock(self) -> float:
        """Return the cycles a second of the clock that `_sleep` counts; the first sleep wakes the GPU."""
        cycles = 10_000_000
        for _ in range(2):
            self.start.record()
            torch.cuda._sleep(cycles)
            self.end.record()
            seconds = self._seconds()
        return cycles / seconds


def stopwatch_for(device: str, kernels_only: bool = False) -> Callable[[Call], float]:
    """Return what times one call, with or without its launches; on a CPU both are wall-clock time."""
    if device != "cuda":
        return cpu_stopwatch
    return KernelStopwatch() if kernels_only else CudaStopwatch()


def race(
    calls: Mapping[Any, Call], stopwatch: Callable[[Call], float], seconds: float, least_laps: int
) -> dict[Any, Timing]:
    """Time every call in turns for about `seconds`, and at least `least_laps` times.

    A call much faster than the slowest takes several turns a lap, for steadier medians.
    """
    warm = {name: _warm_up(call, stopwatch) for name, call in calls.items()}
    share = max(warm.values()) / 4
    turns = {name: min(max(int(share / duration), 1), MAX_TURNS) for name, duration in warm.items()}
    order = list(calls)
    times: dict[Any, list[list[float]]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds
    for lap in range(MAX_LAPS):
        if lap >= least_laps and time.perf_counter() > deadline:
            break
        for name in order:
            times[name].append([stopwatch(calls[name]) for _ in range(turns[name])])
        order.reverse()
    return {name: Timing(laps) for name, laps in times.items()}


def _warm_up(call: Call, stopwatch: Callable[[Call], float]) -> float:
    """Time a call that is not counted; repeat a short one, because its first is mostly start-up."""
    duration = stopwatch(call)
    return duration if duration > 0.1 else min(duration, stopwatch(call))
