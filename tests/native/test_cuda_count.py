"""The way around a kernel's loop whose instructions are counted. No nvcc, no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "native" / "cmake"))

import count_cuda_instructions as counter

LOOP = """
        /*0000*/                   HMMA.16816.F32 R4, R8, R12, RZ ;            /* 0x00 */
        /*0010*/              @!P0 BRA 0x60 ;                                  /* 0x00 */
        /*0020*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR8][R2.64] ; /* 0x00 */
        /*0030*/               @P1 BRA 0x50 ;
        /*0040*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR8][R2.64] ;
        /*0050*/                   IMAD.MOV.U32 R1, RZ, RZ, R2 ;
        /*0060*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0070*/               @P2 BRA 0xa0 ;
        /*0080*/                   FMUL.FTZ R4, R4, R5 ;
        /*0090*/                   BRA.DIV UR4, 0xe0 ;
        /*00a0*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*00b0*/               @P3 BRA P4, 0x10 ;
        /*00c0*/               @P5 EXIT ;
        /*00d0*/                   BRA 0x0 ;
        /*00e0*/                   EXIT ;
"""


def test_a_tile_takes_the_shortest_way_that_makes_all_copies() -> None:
    # 60, 70 | a0, b0, 10, 20, 30, 40, 50: two copies for 16 rows of 32 bytes, no rescaling
    assert counter.count(counter.parse(LOOP), "f16", 16, 8) == 9


def test_a_kernel_without_the_loop_is_no_figure() -> None:
    straight = counter.parse(LOOP.replace("@P3 BRA P4, 0x10", "NOP").replace("BRA 0x0 ", "NOP "))
    with pytest.raises(ValueError, match="no loop"):
        counter.count(straight, "f16", 16, 8)


def test_kernels_are_told_apart_by_their_names() -> None:
    sass = "\n".join(
        f"\t\tFunction : {name}\n{LOOP}"
        for name in (
            "_Z20headkv_attn_partialsIL11headkv_type3ELi128ELi8EEv18headkv_attn_params",
            "_Z19headkv_attn_combineILi128EEv18headkv_attn_params",
        )
    )
    assert [kernel[:3] for kernel in counter.kernels(sass)] == [("q4_0", 128, 8)]
