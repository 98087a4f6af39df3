"""Locks that a forked process can use, even if another thread held them at the fork."""

from __future__ import annotations

import os
from typing import Any


def usable_after_fork(lock: Any) -> Any:
    """Make a lock free at the start of every process that is forked later, and return the lock.

    A fork copies only the thread that calls it. If another thread holds the lock at the fork, the
    lock would otherwise stay locked in the new process for ever.

    Args:
        lock: A `threading.Lock` or `threading.RLock` that is a global variable of a module.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)
    return lock
