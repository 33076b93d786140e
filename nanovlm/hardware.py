"""What a figure was measured on: processors, threads and versions, and nothing that names a machine or its owner."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")
MATMUL = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # rows and columns, large enough to reach what the device can do
MATMULS = 5  # of which the fastest counts


def hardware(device: torch.device) -> dict[str, Any]:
    """For a result's JSON; ``label`` is the device in a few words."""
    cpu, threads = cpu_name(), torch.get_num_threads()
    found: dict[str, Any] = {
        "label": f"{cpu}, {threads} threads" if threads > 1 else f"{cpu}, 1 thread",
        "device": device.type,
        "cpu": cpu,
        "cpu_cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"label": f"one {properties.name}", "gpu": properties.name, "cuda": torch.version.cuda}
        found |= {"gpu_memory_bytes": properties.total_memory}
    return found


def cpu_name() -> str:
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def synchronise(device: torch.device) -> None:
    """Wait for what a device was told to do; a CPU has done it already."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix multiplication, for devices without a data sheet that says what they can do."""
    size = MATMUL[device.type]
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    product, seconds = torch.empty_like(left), []
    for _ in range(MATMULS + 1):  # the first one is slow
        synchronise(device)
        start = time.perf_counter()
        torch.mm(left, right, out=product)
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process could come to hold in all; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if not MEMORY_INFO.is_file():
        return None
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in MEMORY_INFO.read_text().splitlines()}
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return kilobytes["MemAvailable"] * 1024 + resident
