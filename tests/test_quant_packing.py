"""Codes in bytes: what is packed comes back, in the order of bits that others use."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmflation.errors import BadInputError
from llmflation.quant import packing
from llmflation.quant.packing import pack, packed_width, unpack


def codes_of(rows: int, columns: int, bits: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))


def law_of_the_way_back(codes, bits):
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (len(codes), packed_width(codes.shape[1], bits))
    back = unpack(packed, bits, codes.shape[1])
    assert back.dtype == torch.uint8 and torch.equal(back, codes.to(torch.uint8))


def law_of_the_stream(codes, bits):
    """A row is one long number whose lowest bits are the first code."""
    for row, packed in zip(codes.tolist(), pack(codes, bits).tolist()):
        number = sum(code << bits * i for i, code in enumerate(row))
        assert bytes(packed) == number.to_bytes(packed_width(len(row), bits), "little")


@settings(max_examples=150, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(0, 4), columns=st.integers(0, 70), seed=st.integers(0, 999))
def test_what_is_packed_comes_back_for_every_width_and_shape(bits, rows, columns, seed):
    codes = codes_of(rows, columns, bits, seed)
    law_of_the_way_back(codes, bits)
    law_of_the_stream(codes, bits)
    assert packed_width(columns, bits) * 8 - 7 <= columns * bits <= packed_width(columns, bits) * 8


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_whole_numbers_in_any_order_of_memory(dtype):
    codes = codes_of(6, 6, 4).to(dtype)
    for form in (codes, codes.T, codes[::2], codes[:, ::2], codes[:1].expand(4, 6)):
        law_of_the_way_back(form, 4)


def test_eight_whole_numbers_of_four_bits_are_the_int32_of_compressed_tensors():
    """Its `pack_to_int32` of -8 ... 7, each plus 8 (version 0.20.0)."""
    assert [hex(x) for x in pack(torch.arange(16)[None], 4).view(torch.int32)[0].tolist()] == ["0x76543210",
                                                                                              "-0x1234568"]
    assert -0x1234568 + 2**32 == 0xFEDCBA98


def test_halves_in_the_wrong_order_are_found(monkeypatch):
    def swapped(codes, bits, right=packing.pack):
        packed = right(codes, bits)
        return packed >> 4 | packed << 4 if bits == 4 else packed

    monkeypatch.setitem(globals(), "pack", swapped)
    for law in (law_of_the_way_back, law_of_the_stream):
        with pytest.raises(AssertionError):
            law(codes_of(3, 10, 4), 4)


@pytest.mark.parametrize(("bits", "code"), [(4, 16), (4, -9), (4, -1), (2, 4), (8, 256), (8, -1), (1, 2)])
def test_a_code_out_of_range_is_named_and_never_wrapped(bits, code):
    codes = torch.zeros(2, 3, dtype=torch.int64)
    codes[1, 1] = code
    with pytest.raises(BadInputError, match=f"^code is {code}; allowed: 0 to {2**bits - 1}, what {bits} bits hold"):
        pack(codes, bits)


@pytest.mark.parametrize("codes", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.uint8), torch.ones(2, 2) > 0,
                                   torch.zeros(2, 3, dtype=torch.complex64)])
def test_what_are_no_codes(codes):
    with pytest.raises(BadInputError, match="^codes is .*; allowed: whole numbers, .rows, columns"):
        pack(codes, 4)


@pytest.mark.parametrize("bits", [0, 9, -1, 3.0, None, True, "4"])
def test_bits_that_there_are_not(bits):
    for call in (lambda: pack(torch.zeros(1, 1, dtype=torch.uint8), bits),
                 lambda: unpack(torch.zeros(1, 1, dtype=torch.uint8), bits, 1)):
        with pytest.raises(BadInputError, match=f"^bits is {bits!r}; allowed: a whole number from 1 to 8"):
            call()


@pytest.mark.parametrize("packed", [torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2, 4), torch.zeros(4).byte()])
def test_bytes_that_do_not_belong_to_so_many_codes(packed):
    with pytest.raises(BadInputError, match=r"^packed codes is .*; allowed: bytes, .rows, 4. for 7 codes of 4 bits"):
        unpack(packed, 4, 7)
