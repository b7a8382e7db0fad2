from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowprec_plugin import FixedPointFormat
from lowprec_plugin.formats import BLOCK_SIZES

static = st.builds(lambda il, fl: FixedPointFormat(il + fl, fl), st.integers(1, 12), st.integers(1, 12))
dynamic = st.builds(FixedPointFormat, st.integers(2, 24), st.none(), st.sampled_from(BLOCK_SIZES), st.booleans())


@given(static | dynamic)
def test_text_round_trip(format: FixedPointFormat) -> None:
    assert FixedPointFormat.parse(str(format)) == format


def test_sign_is_in_the_integer_length() -> None:
    format = FixedPointFormat.parse("<4,12>")
    assert (format.word_length, format.integer_length, format.fraction_length) == (16, 4, 12)
    # Gupta et al. 2015, section 3: the range of <IL,FL> is [-2**(IL-1), 2**(IL-1) - 2**-FL]
    step = 2.0**format.static_exponent
    assert format.min_code * step == -(2**3)
    assert format.max_code * step == 2**3 - 2**-12


@pytest.mark.parametrize(("bits", "size"), [(2, 1), (8, 1), (9, 2), (12, 2), (16, 2), (17, 3), (24, 3)])
def test_containers(bits: int, size: int) -> None:
    assert FixedPointFormat(bits).container_bytes == size


def test_bytes_of_shapes() -> None:
    assert FixedPointFormat(16).nbytes((10, 512)) == 10 * (1024 + 2)
    assert FixedPointFormat(16).nbytes((10, 300)) == 10 * (600 + 2)  # a short last block in every row
    assert FixedPointFormat(16).nbytes((7,)) == 7 * 3  # one-dimensional: blocks of one element
    assert FixedPointFormat(16).nbytes(()) == 3
    assert FixedPointFormat(16, 12).nbytes((7,)) == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((25,), "word_length=25 is not supported: choose 2 to 24 bits"),
        ((1,), "word_length=1 is not supported"),
        ((16.0,), "is not an integer"),
        ((True,), "is not an integer"),
        ((16, 400), "out of float32's reach"),
        ((16, None, 100), "block_size=100"),
        ((16, None, 256.0), "block_size=256.0 is not an integer"),
        ((16, 12.0), "fraction_length=12.0 is not an integer"),
        ((16, True), "fraction_length=True is not an integer"),
        ((16, "12"), "fraction_length='12' is not an integer"),
        ((16, 12, 256, True), "squared format is dynamic"),
    ],
)
def test_bad_formats_say_what_is_wrong(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FixedPointFormat(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "16", "<4,12", "float16", "fixed", "<4;12>"])
def test_bad_texts(text: str) -> None:
    with pytest.raises(ValueError, match="is not a fixed-point format"):
        FixedPointFormat.parse(text)


@pytest.mark.parametrize("other", [None, 16, b"fixed16"])
def test_what_is_no_text(other: object) -> None:
    with pytest.raises(ValueError, match=f"{other!r} is not a fixed-point format; write its text, such as 'fixed16'"):
        FixedPointFormat.parse(other)  # type: ignore[arg-type]
