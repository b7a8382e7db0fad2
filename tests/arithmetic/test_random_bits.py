from __future__ import annotations

import math

import pytest
import torch

from lowprec_plugin.arithmetic.random_bits import key_of, random_bits, stream_of, substream


def bits(seed: int = 0, name: str = "w", step: int = 0, rows: int = 64, row: int = 1024) -> torch.Tensor:
    return random_bits(key_of(stream_of(seed, name), step), rows, row)


def test_shards_see_the_bits_of_the_whole() -> None:
    key = key_of(stream_of(3, "w"), 7)
    whole = random_bits(key, 100, 37)
    for first, last in ((0, 10), (10, 33), (33, 100)):
        assert torch.equal(random_bits(key, last - first, 37, first_row=first), whole[first:last])


def test_uniform() -> None:
    """Chi-squared over all 65,536 values, within five standard deviations."""
    sample = bits(rows=1024, row=4096).flatten().long()
    counts = torch.bincount(sample, minlength=65536).double()
    expected = sample.numel() / 65536
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi2 - 65535) < 5 * math.sqrt(2 * 65535)


@pytest.mark.parametrize("bit", range(16))
def test_every_bit_is_fair_and_independent_of_its_neighbour(bit: int) -> None:
    plane = ((bits(rows=256, row=4096) >> bit) & 1).double()
    n = plane.numel()
    assert abs(float(plane.mean()) - 0.5) < 5 * 0.5 / math.sqrt(n)
    for lag in (1, 8, 16, 4096):
        flat = plane.flatten() - 0.5
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 5 * 0.25 / math.sqrt(n)


@pytest.mark.parametrize(
    "other",
    [bits(step=1), bits(step=2), bits(seed=1), bits(name="w2"), bits(name="")],
    ids=["next step", "second next", "seed", "name", "empty name"],
)
def test_different_keys_are_uncorrelated(other: torch.Tensor) -> None:
    one, two = bits().double() - 32767.5, other.double() - 32767.5
    correlation = float((one * two).mean() / 65536**2 * 12)
    assert abs(correlation) < 5 / math.sqrt(one.numel())
    assert float((one == two).double().mean()) < 4 / 65536


@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_roles_are_independent(one: int, other: int) -> None:
    """They share a hash up to its last multiplication: chi-squared of the pairs, by their upper and lower bits."""
    key = key_of(stream_of(0, "w"), 3)
    first, second = (random_bits(key, 1024, 4096, role=role).flatten() for role in (one, other))
    for a, b in ((first >> 8, second >> 8), (first & 255, second & 255), (first >> 8, second & 255)):
        counts = torch.bincount((a * 256 + b).long(), minlength=65536).double()
        expected = first.numel() / 65536
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert abs(chi2 - 65535) < 5 * math.sqrt(2 * 65535)
    errors = (first.double() - 32767.5) * (second.double() - 32767.5)
    assert abs(float(errors.mean()) / 65536**2 * 12) < 5 / math.sqrt(first.numel())


def test_a_step_of_one_flips_half_the_bits() -> None:
    one, two = bits(step=10), bits(step=11)
    flipped = sum(float((((one ^ two) >> bit) & 1).double().mean()) for bit in range(16)) / 16
    assert flipped == pytest.approx(0.5, abs=0.005)


def test_elements_beyond_four_billion_differ() -> None:
    key = key_of(stream_of(0, "w"), 0)
    far = random_bits(key, 1, 1024, first_row=2**33 // 1024)
    assert not torch.equal(far, random_bits(key, 1, 1024))


def test_bits_are_pinned() -> None:
    """Changing them would change every run: a resumed training would go another way."""
    stream = stream_of(0, "w")
    assert stream == 485243689829128227
    key = key_of(substream(stream, "exp_avg"), 1)
    assert key == 765493913418212152
    assert random_bits(key, 2, 3).tolist() == [[57906, 9177, 26600], [14724, 13321, 12857]]
    assert random_bits(key, 1, 3, role=1).tolist() == [[5338, 4170, 8234]]
    assert random_bits(key, 1, 3, role=2).tolist() == [[6520, 16111, 26317]]
