"""What the machine has: cores and memory, as far as this process may use them."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def default_threads(beside_gpu: bool = False) -> int:
    """Threads worth having: the smallest of the allowed cores, the cgroup's quota and the physical cores.

    Beside a GPU one core of more than two is left to its driver and to Python.
    """
    limits = [len(_allowed_cpus()), _physical_cores(), _cpu_quota()]
    n = max(1, min(limit for limit in limits if limit is not None))
    return n - 1 if beside_gpu and n > 2 else n


def total_memory() -> int:
    """Bytes of memory this process may use: the machine's, or less in a container."""
    limit = _read_int(_CGROUP / "memory.max")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62
    return total if limit is None else min(total, limit)


def available_memory() -> int:
    """Bytes that can be had without swapping; page cache counts as available."""
    available = [_meminfo("MemAvailable")]
    limit, used = _read_int(_CGROUP / "memory.max"), _read_int(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        available.append(limit - used + _cgroup_page_cache())
    known = [amount for amount in available if amount is not None]
    return max(0, min(known)) if known else total_memory()


def last_level_cache() -> int:
    """Bytes of the first core's largest cache, which others may share; 0 where the system does not tell."""
    sizes = (_read(path) for path in _CPUS.glob("cpu0/cache/index*/size"))
    kibibytes = (size.removesuffix("K") for size in sizes if size)
    return max((int(n) * 1024 for n in kibibytes if n.isdigit()), default=0)


def _allowed_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores() -> int | None:
    """Allowed cores without their hyper-threads, where the system tells."""
    cores = set()
    for cpu in _allowed_cpus():
        siblings = _read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list")
        if siblings is None:
            return None
        cores.add(siblings)
    return len(cores)


def _cpu_quota() -> int | None:
    quota = (_read(_CGROUP / "cpu.max") or "max").split()
    if len(quota) != 2 or quota[0] == "max":
        return None
    return max(1, int(quota[0]) // int(quota[1]))


def _cgroup_page_cache() -> int:
    lines = (_read(_CGROUP / "memory.stat") or "").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("file ")), 0)


def _meminfo(key: str) -> int | None:
    lines = (_read(Path("/proc/meminfo")) or "").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _read_int(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text and text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
