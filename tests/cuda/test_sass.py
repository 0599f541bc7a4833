"""The reader and executor of machine code, on a few instructions whose results are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sass import checks, occupancy
from benchmarks.sass.execution import Program, Stuck
from benchmarks.sass.halves import to_bfloat16
from benchmarks.sass.instructions import UnknownInstruction
from benchmarks.sass.kinds import by_kind, kind_of
from benchmarks.sass.memory import BadAccess, count_sectors, shared_wavefronts
from benchmarks.sass.parameters import Headers
from tests.cuda.assembly import BASE, EVERYONE, LANES, LOOP, STORE, assemble, execute, stored


def test_a_loop_is_found_and_counted():
    _, ledger, memory = execute(LOOP + STORE)
    assert (stored(memory) == 10 * LANES).all()
    assert ledger.at[3 * 16] == 10 and ledger.at[0] == 1
    (loop,) = checks.loops(assemble(LOOP + STORE))
    assert (loop.header, loop.depth) == (3, 1)
    assert [ins.base for _, ins in checks.in_loops(assemble(LOOP + STORE))] == ["IADD3", "IADD3", "ISETP", "BRA"]


def test_nested_loops_have_depths():
    code = """
    MOV R4, 0x0
    outer:
    MOV R6, 0x0
    inner:
    IADD3 R6, R6, 0x1, RZ
    ISETP.NE.AND P0, PT, R6, 0x3, PT
    @P0 BRA inner
    IADD3 R4, R4, 0x1, RZ
    ISETP.NE.AND P0, PT, R4, 0x4, PT
    @P0 BRA outer
    EXIT
    """
    assert [(loop.header, loop.depth) for loop in checks.loops(assemble(code))] == [(1, 1), (2, 2)]
    _, ledger, _ = execute(code)
    assert (ledger.at[16], ledger.at[2 * 16]) == (4, 12)


# Odd lanes add 100, the others 7; both then add 1.
DIAMOND = """
S2R R0, SR_TID.X
LOP3.LUT P0, RZ, R0, 0x1, RZ, 0xc0, !PT
BSSY B0, after
@P0 BRA odd
IADD3 R5, R0, 0x7, RZ
BRA meet
odd:
IADD3 R5, R0, 0x64, RZ
meet:
BSYNC B0
after:
IADD3 R5, R5, 0x1, RZ
"""


def test_lanes_that_diverge_meet_again():
    _, ledger, memory = execute(DIAMOND + STORE)
    assert (stored(memory) == LANES + np.where(LANES % 2, 101, 8)).all()
    assert ledger.at[8 * 16] == 1, "together behind the BSYNC"
    assert ledger.at[7 * 16] == 2, "each side comes to it"
    assert checks.loops(assemble(DIAMOND + STORE)) == []


def test_without_a_meeting_point_the_rest_runs_twice():
    apart = DIAMOND.replace("BSSY B0, after", "NOP").replace("BSYNC B0", "NOP")
    _, ledger, memory = execute(apart + STORE)
    assert (stored(memory) == LANES + np.where(LANES % 2, 101, 8)).all()
    assert ledger.at[8 * 16] == 2


def test_lanes_that_ended_are_not_waited_for():
    code = """
    S2R R0, SR_TID.X
    ISETP.GE.U32.AND P0, PT, R0, 0x8, PT
    BSSY B0, after
    @P0 EXIT
    MOV R5, 0x5
    BSYNC B0
    after:
    """
    _, _, memory = execute(code + STORE)
    assert (stored(memory) == np.where(LANES < 8, 5, 0)).all()


def test_a_branch_out_of_a_loop_counts_the_longest_lane():
    code = """
    S2R R0, SR_TID.X
    MOV R5, 0x0
    BSSY B0, after
    again:
    ISETP.GE.AND P0, PT, R5, R0, PT
    @P0 BRA done
    IADD3 R5, R5, 0x1, RZ
    BRA again
    done:
    BSYNC B0
    after:
    """
    _, ledger, memory = execute(code + STORE)
    assert (stored(memory) == LANES).all()
    assert ledger.at[3 * 16] == 32 and ledger.at[8 * 16] == 1


def test_a_block_exchanges_numbers_through_shared_memory():
    code = """
    S2R R0, SR_TID.X
    IMAD.SHL.U32 R4, R0, 0x4, RZ
    STS [R4], R0
    BAR.SYNC.DEFER_BLOCKING 0x0
    IMAD R4, R4, -0x1, RZ
    LDS R5, [R4+0xfc]
    """
    _, ledger, memory = execute(code + STORE, threads=64)
    assert (stored(memory, 64) == 63 - np.arange(64)).all()
    assert ledger.memory["shared wavefronts"] == 4
    _, _, memory = execute(code.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "NOP") + STORE, threads=64)
    assert stored(memory, 64)[0] == 0xFFFFFFFF, "shared memory is not zero before it is written"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("IADD3 R5, P0, R0, -0x1, RZ\nIADD3.X R5, RZ, RZ, RZ, P0, !PT", LANES > 0),
        ("LEA.HI R5, R0, R0, RZ, 0x1e", LANES + (LANES >> 2)),
        ("SHF.R.U32.HI R5, RZ, 0x3, R0", LANES >> 3),
        ("PRMT R5, R0, 0x4440, RZ", LANES),
        ("MOV R6, 0xff80\nPRMT R5, R6, 0x9880, RZ", np.full(32, 0xFFFFFF80)),
        ("LOP3.LUT R5, R0, 0x5, RZ, 0x3c, !PT", LANES ^ 5),
        ("VIADDMNMX R5, R0, 0xfffffff0, RZ, !PT", np.maximum(LANES - 16, 0)),
        ("I2FP.F32.S32 R6, R0\nFFMA R6, R6, 2, 0.5\nF2I.FLOOR.NTZ R5, R6", 2 * LANES),
        ("I2FP.F32.S32 R6, R0\nFADD R6, R6, 1\nMUFU.RCP R7, R6\nFMUL R7, R7, R6\nF2I.NTZ R5, R7", np.ones(32)),
        ("SHFL.BFLY PT, R5, R0, 0x4, 0x1f", LANES ^ 4),
        ("SHFL.UP P0, R5, R0, 0x1, RZ\nSEL R5, R5, 0x63, P0", np.where(LANES, LANES - 1, 99)),
        ("SHFL.IDX PT, R5, R0, 0x2, 0x181f", LANES // 8 * 8 + 2),
        ("ISETP.GT.AND P0, PT, R0, 0x1d, PT\nVOTE.ANY R5, PT, P0", np.full(32, 0xC0000000)),
        ("STS [RZ], RZ\nATOMS.ADD R5, [RZ], R0\nLDS R5, [RZ]", np.full(32, 496)),
        ("IMAD.SHL.U32 R6, R0, 0x4, RZ\nSTS [R6], R0\nIMAD.SHL.U32 R6, R0, 0x10, RZ\nLDSM.16.M88 R5, [R6]", LANES),
        ("MOV R6, 0x3f800000\nF2FP.BF16.F32.PACK_AB R5, R6, RZ", np.full(32, 0x3F800000)),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_one_instruction(code, expected):
    _, _, memory = execute(f"S2R R0, SR_TID.X\n{code}\n{STORE}")
    assert (stored(memory) == np.asarray(expected).astype(np.uint32)).all()


def test_a_tensor_core_multiplies_matrices():
    random = np.random.default_rng(0)
    a, b = (random.integers(-8, 8, shape).astype(np.float32) for shape in ((16, 16), (16, 8)))
    group, member = LANES // 4, LANES % 4 * 2

    def packed(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return to_bfloat16(low) | to_bfloat16(high) << np.uint32(16)

    # Fragments as PTX's description of mma.m16n8k16 has them.
    a_registers = [
        packed(a[group + 8 * (i % 2), member + 8 * (i // 2)], a[group + 8 * (i % 2), member + 8 * (i // 2) + 1])
        for i in range(4)
    ]
    b_registers = [packed(b[member + 8 * i, group], b[member + 8 * i + 1, group]) for i in range(2)]
    block, _, _ = execute("EXIT")
    warp = block.warps[0]
    for i, values in enumerate([*a_registers, *b_registers]):
        warp.R[4 + i] = values
    (ins,) = assemble("HMMA.16816.F32.BF16 R12, R4, R8, RZ")
    step = Program([ins]).step(0)
    assert step.run is not None
    step.run(warp, EVERYONE)
    product = a @ b
    for i in range(4):
        found = warp.R[12 + i].view(np.float32)
        assert (found == product[group + 8 * (i // 2), member + i % 2]).all()


def test_wavefronts_of_shared_memory():
    assert shared_wavefronts(4 * LANES, EVERYONE, 4) == 1
    assert shared_wavefronts(128 * LANES, EVERYONE, 4) == 32
    assert shared_wavefronts(0 * LANES, EVERYONE, 16) == 4, "eight lanes at a time"
    assert shared_wavefronts(16 * LANES, EVERYONE, 16) == 4
    assert shared_wavefronts(32 * LANES, EVERYONE, 16) == 8, "every second of eight places is used"
    assert shared_wavefronts(8 * LANES, LANES < 16, 8) == 1


def test_sectors_of_global_memory():
    assert count_sectors(BASE + 4 * LANES, EVERYONE, 4) == (1, 4, 0)
    assert count_sectors(BASE + 16 * LANES, EVERYONE, 16) == (4, 16, 0)
    assert count_sectors(BASE + 32 * LANES, EVERYONE, 16) == (8, 32, 32), "half of each sector"


def test_occupancy_has_four_limits():
    assert occupancy.blocks_per_multiprocessor(90, 64, 256, 8192) == 4
    assert occupancy.blocks_per_multiprocessor(90, 32, 256, 64 << 10) == 3
    assert occupancy.blocks_per_multiprocessor(90, 32, 32, 0) == 32
    assert occupancy.blocks_per_multiprocessor(90, 24, 1024, 0) == 2


def test_what_is_not_known_is_refused():
    with pytest.raises(UnknownInstruction, match="XYZ"):
        execute("XYZ R1, R2\nEXIT")
    with pytest.raises(UnknownInstruction, match=r"FFMA\.|SR_CLOCKLO"):
        execute("S2R R0, SR_CLOCKLO\nEXIT")
    with pytest.raises(BadAccess, match="LDG"):
        execute("LDG.E R5, desc[UR4][R2.64]\nEXIT")
    with pytest.raises(BadAccess, match="LDS"):
        execute("MOV R2, 0x2\nLDS R5, [R2]\nEXIT")
    with pytest.raises(Stuck, match="traps"):
        execute("BPT.TRAP 0x1")
    with pytest.raises(Stuck, match="wait"):
        execute(
            "S2R R0, SR_TID.X\nISETP.GE.U32.AND P0, PT, R0, 0x8, PT\n@P0 BRA x\nWARPSYNC.ALL\nx:\nBAR.SYNC 0x0\nEXIT"
        )


def test_kinds():
    kinds = {
        "LDG.E.128.CONSTANT R4, desc[UR4][R2.64]": "LDG 128",
        "LDS.U8 R4, [R2]": "LDS 8",
        "REDG.E.ADD.F32x4.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R4": "RED 128",
        "IMAD.MOV.U32 R4, RZ, RZ, R5": "move, select",
        "IMAD.WIDE R4, R5, R6, R8": "integer",
        "HFMA2.MMA R54, -RZ, RZ, 0, 0": "move, select",
        "UIADD3 UR4, UR5, UR6, URZ": "uniform",
        "STL [R1], R4": "local memory",
        "QQQ R1": "other: QQQ",
    }
    assert {text: kind_of(assemble(text)[0]) for text in kinds} == kinds
    _, ledger, _ = execute(LOOP + STORE)
    counted = by_kind(assemble(LOOP + STORE), ledger.at)
    assert counted["branch"] == 11 and counted["integer"] == 21 and counted["STG 32"] == 1


def test_structs_are_laid_out_as_in_c(tmp_path):
    header = tmp_path / "params.h"
    header.write_text(
        "constexpr int kMost = 2 + 1;\nstruct Rows {\n  const void* data;  // here\n  int32_t stride;\n};\n"
        "struct Base {\n  int64_t B, S;\n  bool flag;\n};\n"
        "struct Params : Base {\n  Rows rows;\n  int32_t sizes[kMost];\n  float scale = 1;\n};\n"
    )
    headers = Headers(header)
    data = headers.pack(
        "Params", {"S": 5, "flag": True, "rows": {"data": 7, "stride": -1}, "sizes": [1, 2], "scale": 2}
    )
    assert len(data) == 24 + 16 + 12 + 4
    assert data[8] == 5 and data[16] == 1 and data[24] == 7 and data[32:36] == b"\xff" * 4
    assert data[40] == 1 and data[44] == 2 and data[52:56] == b"\0\0\0\x40"
    with pytest.raises(ValueError, match="no Q; it has B"):
        headers.pack("Params", {"Q": 1})
