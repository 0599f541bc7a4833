"""Find NVIDIA's disassembler, and read the kernels of a library or an object file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure import tools
from benchmarks.measure.machine import ROOT
from benchmarks.sass.instructions import ADDRESS_BYTES, Instruction, split_operands

CACHE = ROOT / "build" / "sass"
TOOL_S = 600.0


class MissingTool(RuntimeError):
    """cuobjdump or nvdisasm is not installed."""


def find_tool(name: str) -> str:
    """Return the path of one of NVIDIA's programs.

    Raises:
        MissingTool: it is in none of the usual folders.
    """
    path = tools.find(name)
    if path is None:
        raise MissingTool(f"{name} was not found. Install Triton, or the CUDA toolkit and set CUDA_HOME.")
    return path


@dataclass(eq=False)
class Kernel:
    """One compiled kernel. Instructions of its subroutines follow its own."""

    name: str  # mangled
    arch: int
    registers: int
    stack: int  # bytes of a thread
    static_shared: int  # bytes of a block, without what the system reserves
    max_threads: int
    parameter_offset: int  # in constant bank 0
    parameter_bytes: int
    instructions: list[Instruction]
    constants: dict[int, bytes] = field(default_factory=dict)

    @property
    def spills(self) -> int:
        return sum(ins.base in ("STL", "LDL") for ins in self.instructions)


def cubins(library: Path, arch: int) -> list[Path]:
    """Extract the ELF files for one architecture from a library, object or .cubin; keep them in build/sass."""
    data = library.read_bytes()
    folder = CACHE / f"{hashlib.sha256(data).hexdigest()[:16]}-{arch}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if data[:4] == b"\x7fELF" and struct.unpack_from("<H", data, 18)[0] == 190:  # EM_CUDA
            (folder / f"{library.stem}.cubin").write_bytes(data)
        else:
            tools.run([find_tool("cuobjdump"), "-xelf", "all", str(library.resolve())], TOOL_S, folder=folder)
            for path in folder.iterdir():
                if f"sm_{arch}." not in path.name.replace(f"sm_{arch}a", f"sm_{arch}"):
                    path.unlink()
        if not any(folder.iterdir()):
            shutil.rmtree(folder)
            raise RuntimeError(f"{library} has no machine code for sm_{arch}. Build it with TORCH_CUDA_ARCH_LIST")
        (folder / "done").touch()
    return sorted(folder.glob("*.cubin"))


@dataclass
class Section:
    name: str
    data: bytes
    info: int
    link: int
    kind: int


def sections(cubin: bytes) -> list[Section]:
    at, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 40)[0], *struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, at + i * size) for i in range(count)]
    strings = cubin[headers[names][4] :]

    def text(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    return [Section(text(h[0]), b"" if h[1] == 8 else cubin[h[4] : h[4] + h[5]], h[7], h[6], h[1]) for h in headers]


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the last of each attribute of a .nv.info section, by number."""
    found, at = {}, 0
    while at < len(data):
        form, number = data[at], data[at + 1]
        if form == 4:
            size = struct.unpack_from("<H", data, at + 2)[0]
            found[number] = data[at + 4 : at + 4 + size]
            at += 4 + size
        else:
            found[number] = data[at + 2 : at + 4]
            at += 4
    return found


PARAMETERS, MAX_THREADS = 0x0A, 0x05  # EIATTR_PARAM_CBANK, EIATTR_MAX_THREADS


def kernel_names(cubin: Path) -> list[str]:
    """Return the mangled names of the kernels in a cubin, without disassembling it."""
    prefix = ".text."
    return [s.name[len(prefix) :] for s in sections(cubin.read_bytes()) if s.name.startswith(prefix)]


def compiler(library: Path, arch: int) -> str:
    """Return the version of ptxas that made the code, as in "V13.0.88"."""
    for cubin in cubins(library, arch):
        for section in sections(cubin.read_bytes()):
            if section.name == ".note.nv.tkinfo" and (found := re.search(rb"V(\d+\.\d+\.\d+)", section.data)):
                return found[0].decode()
    return "unknown"


def disassemble(cubin: Path) -> list[dict[str, object]]:
    """Return nvdisasm's functions, kept beside the cubin."""
    kept = cubin.with_suffix(".json")
    if not kept.exists():
        with tempfile.NamedTemporaryFile("w", dir=cubin.parent, delete=False) as file:
            file.write(tools.run([find_tool("nvdisasm"), "-c", "-json", str(cubin)], TOOL_S))
        Path(file.name).replace(kept)
    return json.loads(kept.read_text())[1]


def read_kernels(cubin: Path, arch: int, pattern: str = "") -> list[Kernel]:
    """Return the kernels whose mangled name contains a match of `pattern`."""
    functions = disassemble(cubin)
    raw = sections(cubin.read_bytes())
    by_name = {section.name: section for section in raw}
    pattern_of_usage = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) "
    usage = {found[1]: found for found in re.finditer(pattern_of_usage, _usage(cubin))}
    kernels, at = [], 0
    while at < len(functions):
        name = str(functions[at]["function-name"])
        end = at + 1
        while end < len(functions) and functions[end]["start"] != 0:
            end += 1
        if re.search(pattern, name):
            info = attributes(by_name[f".nv.info.{name}"].data) if f".nv.info.{name}" in by_name else {}
            offset, size = struct.unpack_from("<HH", info[PARAMETERS], 4) if PARAMETERS in info else (0, 0)
            threads = struct.unpack_from("<I", info[MAX_THREADS])[0] if MAX_THREADS in info else 1024
            constants = {
                int(found[1]): section.data
                for section in raw
                if (found := re.fullmatch(rf"\.nv\.constant(\d+)(\.{re.escape(name)})?", section.name))
            }
            reserved = 1024 if arch >= 90 else 0
            kernels.append(
                Kernel(
                    name,
                    arch,
                    int(usage[name][2]),
                    int(usage[name][3]),
                    max(0, int(usage[name][4]) - reserved),
                    threads,
                    offset,
                    size,
                    decode(functions[at:end]),
                    constants,
                )
            )
        at = end
    return kernels


def _usage(cubin: Path) -> str:
    kept = cubin.with_suffix(".usage")
    if not kept.exists():
        kept.write_text(tools.run([find_tool("cuobjdump"), "-res-usage", str(cubin)], TOOL_S))
    return kept.read_text()


def decode(functions: list[dict[str, object]]) -> list[Instruction]:
    """Return the instructions of a kernel and its subroutines, by address; gaps between them become traps."""
    starts = {str(function["function-name"]): int(str(function["start"])) for function in functions}
    instructions: list[Instruction] = []
    for function in functions:
        address = int(str(function["start"]))
        while len(instructions) * ADDRESS_BYTES < address:
            instructions.append(Instruction(len(instructions) * ADDRESS_BYTES, "BPT.TRAP", []))
        for line in function["sass-instructions"]:  # type: ignore[attr-defined]
            if address >= len(instructions) * ADDRESS_BYTES:
                opcode, operands = line["opcode"], split_operands(line.get("operands", ""))
                ins = Instruction(address, opcode, operands, line.get("predicate", "").replace("PR", ""))
                if ins.base in ("BRA", "BSSY", "CALL", "WARPSYNC", "JMP") and operands:
                    last = operands[-1].strip("`()")
                    if last in starts:
                        ins.target = starts[last]
                    elif re.fullmatch(r"0x[0-9a-f]+", last) and (ins.base != "WARPSYNC" or len(operands) > 1):
                        ins.target = int(last, 16)
                instructions.append(ins)
            address += ADDRESS_BYTES
    return instructions


def demangle(names: list[str]) -> dict[str, str]:
    """Return readable names, or without c++filt the mangled ones."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None or not names:
        return {name: name for name in names}
    out = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=False).stdout.split("\n")
    return dict(zip(names, out, strict=False))


def kernels_of_cubin(cubin: bytes, arch: int) -> list[Kernel]:
    """Return the kernels of a cubin in memory, such as `triton.compile(...).asm["cubin"]`."""
    folder = CACHE / f"{hashlib.sha256(cubin).hexdigest()[:16]}-{arch}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kernel.cubin"
    if not path.exists():
        path.write_bytes(cubin)
    return read_kernels(path, arch)
