"""How much memory a stretch of work needs above what was there before it."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil
import torch

MIB = 2**20
_INTERVAL_S = 0.01


def memory_in_use(device: torch.device) -> int:
    """Bytes in use now: of the accelerator by tensors, or of this process's resident set on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Measures a ``with`` block: `baseline_mib` at its start, `peak_mib` the most above it, in MiB.

    `begin` moves the start to a later point of the block (when a base model is in memory), `end` the end to
    an earlier one. On CUDA the allocator's own peak is read; on a CPU a thread samples the resident set
    every 10 ms, so that a peak shorter than that may be missed.

    >>> with PeakMemory(torch.device("cpu")) as peak:
    ...     block = bytearray(64 * MIB)
    >>> peak.peak_mib >= 0
    True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._baseline = self._most = 0

    @property
    def baseline_mib(self) -> float:
        """Memory in use at the start."""
        return self._baseline / MIB

    @property
    def peak_mib(self) -> float:
        """The most that was in use up to the end, less the baseline."""
        return max(0, self._most - self._baseline) / MIB

    def begin(self) -> None:
        """Measure from here on."""
        self._baseline = self._most = memory_in_use(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._thread is None:
            self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Measure up to here; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._most = max(self._most, memory_in_use(self._device))
        else:
            self._most = int(torch.cuda.max_memory_allocated(self._device))

    def __enter__(self) -> PeakMemory:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(_INTERVAL_S):
            self._most = max(self._most, int(process.memory_info().rss))
