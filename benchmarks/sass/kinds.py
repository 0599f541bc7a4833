"""Sort instructions by the kind of their work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from benchmarks.sass.instructions import ADDRESS_BYTES, Instruction

# First match wins: base opcodes by kind.
_KINDS = {
    "tensor core": "HMMA IMMA DMMA LDSM MOVM",
    "float32": "FADD FMUL FFMA FMNMX FSEL FSETP FCHK FSWZADD",
    "float64": "DADD DMUL DFMA DSETP DMNMX",
    "half": "HADD2 HMUL2 HFMA2 HSETP2 HMNMX2",
    "conversion": "F2F F2FP F2I I2F I2FP FRND I2I",
    "MUFU": "MUFU",
    "bytes": "PRMT",
    "shift, logic": "LOP3 SHF SGXT BMSK BREV",
    "integer": "IMAD IADD3 VIADD LEA IABS VIADDMNMX VIMNMX IMNMX POPC FLO IDP",
    "move, select": "MOV CS2R SEL S2R P2R R2P B2R",
    "compare": "ISETP PLOP3",
    "constant": "LDC",
    "shuffle, vote": "SHFL VOTE VOTEU MATCH REDUX R2UR CREDUX",
    "barrier": "BAR",
    "branch": (
        "BRA BSSY BSYNC BREAK EXIT CALL RET WARPSYNC BMOV BRX JMP YIELD NOP ENDCOLLECTIVE NANOSLEEP LEPC BPT MEMBAR "
        "WARPGROUP ERRBAR CCTL DEPBAR LDGDEPBAR PREEXIT ACQBULK"
    ),
}
_BY_BASE = {base: kind for kind, bases in _KINDS.items() for base in bases.split()}


def kind_of(ins: Instruction) -> str:
    """Return one of a few words; for loads, stores and reductions with the bits that a lane moves, as in "LDS 128"."""
    base = ins.base
    if base in ("LDG", "LDS", "STS", "STG", "LD", "ST"):
        return f"{base} {8 * ins.width}"
    if base in ("RED", "REDG", "ATOMG", "ATOM"):
        return f"RED {8 * ins.width}"
    if base == "ATOMS":
        return base
    if base in ("STL", "LDL"):
        return "local memory"
    if (base == "IMAD" and ins.operands[1:3] == ["RZ", "RZ"]) or (base == "HFMA2" and "RZ" in ins.operands[1:3]):
        return "move, select"
    if base[0] == "U" or base == "S2UR":
        return "uniform"
    return _BY_BASE.get(base, f"other: {base}")


def by_kind(instructions: list[Instruction], at: Counter[int]) -> Counter[str]:
    """Count the executed warp instructions of each kind."""
    kinds: Counter[str] = Counter()
    for address, count in at.items():
        kinds[kind_of(instructions[address // ADDRESS_BYTES])] += count
    return kinds


def static_counts(instructions: Iterable[Instruction]) -> Counter[str]:
    """Count the instructions of each kind in the code, each once: for kernels without loops, such as Triton's."""
    return Counter(kind_of(ins) for ins in instructions)
