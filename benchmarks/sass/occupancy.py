"""Compute how many blocks of a kernel fit on a multiprocessor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one generation, from the CUDA C++ Programming Guide's table of compute capabilities."""

    threads: int = 2048
    blocks: int = 32
    registers: int = 65536
    shared_bytes: int = 228 << 10
    reserved_bytes: int = 1 << 10  # of shared memory, a block


LIMITS = {80: Multiprocessor(shared_bytes=164 << 10), 90: Multiprocessor()}


def blocks_per_multiprocessor(arch: int, registers: int, threads: int, shared_bytes: int) -> int:
    """Return how many fit; `shared_bytes` of a block are static and dynamic, without what the system reserves."""
    limits = LIMITS[arch]
    warps = (threads + 31) // 32
    per_warp = (registers * 32 + 255) // 256 * 256  # registers are handed out to warps by 256
    by_registers = limits.registers // per_warp // warps if registers else limits.blocks
    shared = (shared_bytes + limits.reserved_bytes + 127) // 128 * 128
    return min(limits.blocks, limits.threads // (warps * 32), by_registers, limits.shared_bytes // shared)
