"""The machine at hand: how many cores this process may use, and how to know it again."""

from __future__ import annotations

import math
import os
import platform
from functools import cache
from pathlib import Path

from cascadebert.errors import InputError

THREADS_VARIABLE = "CASCADEBERT_THREADS"
"""Names the number of threads that engines use, where no number is given in code."""

_CPU_INFO = Path("/proc/cpuinfo")
_CGROUP = Path("/sys/fs/cgroup")


@cache
def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer if a container's quota is.

    Engines take all cores that they see, and in a container with a quota the threads beyond it
    only get in each other's way.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(int(min(bound or 1, _quota())), 1)


def thread_count(threads: int | None = None) -> int:
    """Threads for an engine: ``threads``, else ``$CASCADEBERT_THREADS``, else the usable cores.

    Raises:
        InputError: either is not a whole number of 1 or more.
    """
    given = os.environ.get(THREADS_VARIABLE) or None if threads is None else threads
    if given is None:
        return usable_cores()
    try:
        count = int(given)
    except ValueError:
        count = 0
    if count < 1 or isinstance(given, float):
        what = THREADS_VARIABLE if threads is None else "threads"
        raise InputError(f"{what} is {given!r}; give a whole number of 1 or more")
    return count


def _quota() -> float:
    """Cores that the control group grants; infinite without one."""
    try:
        limit, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    return float(limit) / float(period) if limit.isdecimal() else math.inf


@cache
def machine_name() -> str:
    """Processor and usable cores, as ``"AMD EPYC (family 25 model 17), 2 cores"``."""
    cores = usable_cores()
    return f"{processor_name()}, {cores} core{'s' if cores > 1 else ''}"


@cache
def processor_name() -> str:
    """The processor, as ``"AMD EPYC (family 25 model 17)"``; its rounding depends on it."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            facts.setdefault(name.strip(), value.strip())
    model = facts.get("model name")
    if model is None:
        return platform.machine()
    return f"{model} (family {facts.get('cpu family')} model {facts.get('model')})"
