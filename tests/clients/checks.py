"""The checks that every Python client runs: each is a named function, run in turn, printed as it passes."""

import sys
import traceback


def run(checks):
    """Runs the checks in order and exits 1 where one failed."""
    failed = 0
    for check in checks:
        try:
            check()
            print(f"ok {check.__name__}", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED {check.__name__}", flush=True)
            traceback.print_exc()
    sys.exit(1 if failed else 0)


def equal(found, expected):
    """Raises where two values differ; `assert` may be switched off, this can't."""
    if found != expected:
        raise AssertionError(f"{found!r}, expected {expected!r}")
