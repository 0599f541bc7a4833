"""The processes of a DataLoader: they ignore signals that are meant for the training, and never outlive it."""

from __future__ import annotations

import atexit
import signal
import weakref
from multiprocessing.util import Finalize
from typing import Any, Protocol

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from dino.common.parent import end_with_parent

_SECONDS_TO_END = 1.0


class Closable(Protocol):
    """A loader with processes."""

    def close(self) -> None: ...


_open: weakref.WeakSet[Closable] = weakref.WeakSet()


def prepare_worker(_worker: int) -> None:
    """Prepare a worker; called in it.

    Ctrl-C and a scheduler's SIGTERM reach all processes of a run. The training process then finishes its step, for
    which it still needs batches, so that workers ignore both. When it is killed, Linux kills them too.
    """
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def started(loader: Closable, data_loader: DataLoader[Any]) -> None:
    """End a loader's workers when this process exits or the loader is no longer used. Called after they were started.

    This comes before what PyTorch and multiprocessing do at exit: they would wait for a worker to end.
    """
    if loader not in _open:
        _open.add(loader)
        atexit.unregister(_close_all)
        atexit.register(_close_all)
        # A process that multiprocessing started calls only these.
        Finalize(loader, end_workers, (data_loader,), exitpriority=100)


def _close_all() -> None:
    for loader in list(_open):
        loader.close()


def end_workers(loader: DataLoader[Any]) -> None:
    """End the workers of a loader, also those in the middle of a batch."""
    iterator: Any = loader._iterator
    loader._iterator = None
    workers = getattr(iterator, "_workers", ())
    if not workers:
        return
    # PyTorch would report a killed worker as an error.
    signal_handling._remove_worker_pids(id(iterator))  # pyright: ignore[reportPrivateImportUsage]
    iterator._worker_pids_set = False
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(_SECONDS_TO_END)
    iterator._shutdown_workers()
