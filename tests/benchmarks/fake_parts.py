"""Parts that crash, hang and end; this module imports no torch, so that their processes start fast."""

import os
import signal
import time


def good(reporter, log=os.devnull):
    def rows():
        with open(log, "a") as file:
            file.write("good ")
        return [{"kind": "test", "value": 0}]

    reporter.attempt("step", rows)


def crash(reporter):
    reporter.attempt("before", lambda: [{"kind": "test", "value": 1}])
    reporter.attempt("culprit", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    reporter.attempt("after", lambda: [{"kind": "test", "value": 2}])


def spoil(reporter):
    reporter.attempt("culprit", lambda: 1 / 0, spoils=True)
    reporter.attempt("after", lambda: [{"kind": "test", "value": 3}])


def hang(reporter):
    reporter.attempt("culprit", lambda: time.sleep(1000))


def end(reporter):
    os._exit(7)
