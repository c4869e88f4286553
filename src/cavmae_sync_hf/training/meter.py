# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How fast is a training, and how much memory does it take?"""

import time

import torch

__all__ = ["SpeedMeter", "memory_in_use"]


class SpeedMeter:
    """Speed since the last log line."""

    def __init__(self, flops_per_pair: int) -> None:
        self.flops_per_pair, self.peak_tflops = flops_per_pair, 0.0
        self.restart()

    def restart(self) -> None:
        """Forget; called after what is no training."""
        self.began, self.waited, self.clips, self.pairs = time.perf_counter(), 0.0, 0, 0

    def add(self, clips: int, pairs: int) -> None:
        self.clips, self.pairs = self.clips + clips, self.pairs + pairs

    def read(self, processes: int) -> dict[str, float]:
        """Figures of the time since the last call, of all processes, taken as alike; then begins anew."""
        seconds = max(time.perf_counter() - self.began, 1e-9)
        tflops = self.pairs * self.flops_per_pair / seconds / 1e12
        figures = {
            "samples_per_second": self.clips * processes / seconds,
            "data_wait_share": min(1.0, self.waited / seconds),
            "tflops_per_device": tflops,
        }
        if self.peak_tflops:
            figures["flop_utilisation"] = tflops / self.peak_tflops
        self.restart()
        return figures


def memory_in_use(device: torch.device) -> dict[str, float]:
    """Most memory held so far, in GiB: the device's, or the process's own on a CPU."""
    if device.type == "cuda":
        return {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    try:
        import resource
    except ImportError:  # not on Windows
        return {}
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
