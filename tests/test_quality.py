from __future__ import annotations

import pytest

from lowprec_plugin.quality import allowance, compare


def test_within_the_twins_noise_is_equal() -> None:
    result = compare([1.0, 1.1, 0.9, 1.0], [1.002, 1.098, 0.901, 1.0], [1.001, 1.101, 0.9, 0.999])
    assert result.equal
    assert result.difference == pytest.approx(0.00025)
    assert result.noise == pytest.approx(((0.002**2 + 0.002**2 + 0.001**2) / 4) ** 0.5)
    assert result.twins_error == pytest.approx(result.noise / 2)
    assert result.equal_by_twins


def test_negative_control() -> None:
    assert compare([1.0] * 4, [1.001, 0.999, 1.0, 1.001], [1.02] * 4).equal is False


def test_small_but_beyond_two_standard_errors_is_not_equal() -> None:
    assert compare([1.0] * 4, [1.0001, 0.9999, 1.0001, 0.9999], [1.001] * 4).equal is False


def test_within_the_noise_but_beyond_the_limit_is_not_equal() -> None:
    """Noise is no excuse for a large difference."""
    assert compare([1.0] * 4, [1.1, 0.9, 1.1, 0.9], [1.01] * 4).equal is False


def test_where_float32_is_not_chaotic_a_settings_own_spread_is_its_noise() -> None:
    twins = [1.000001, 0.999999, 1.0, 1.000001]
    result = compare([1.0] * 4, twins, [1.002, 0.999, 1.001, 0.9985])
    assert result.equal
    assert result.equal_by_twins is False
    assert result.standard_error == result.own_error > result.twins_error
    # Its spread does not excuse a difference that all seeds agree on, nor one beyond the limit.
    assert compare([1.0] * 4, twins, [1.002, 1.0021, 1.0019, 1.002]).equal is False
    assert compare([1.0] * 4, twins, [1.1, 0.95, 1.02, 0.97]).equal is False


def test_an_exact_tie_is_equal_without_noise() -> None:
    assert compare([0.97] * 4, [0.97] * 4, [0.97] * 4).equal
    assert compare([0.0] * 4, [0.0] * 4, [0.0] * 4).equal, "of a metric that is zero too"


def test_too_few_seeds_give_no_verdict() -> None:
    assert compare([1.0] * 3, [1.0] * 3, [1.0] * 3).equal is None


def test_one_run_of_each_per_seed() -> None:
    with pytest.raises(ValueError, match="4 float32 runs, 3 twins and 4 runs"):
        compare([1.0] * 4, [1.0] * 3, [1.0] * 4)


def test_within_a_tolerance_two_standard_errors_included() -> None:
    """Worse is what the metric calls worse; too few seeds show nothing."""
    baseline, twins = [1.0] * 4, [1.001, 0.999, 1.001, 0.999]  # standard error 0.0005
    higher = compare(baseline, twins, [1.004] * 4)
    assert higher.worse(higher_is_better=False) == pytest.approx(0.004)
    assert higher.worse(higher_is_better=True) == pytest.approx(-0.004)
    assert higher.within(0.0051, higher_is_better=False) is True
    assert higher.within(0.0049, higher_is_better=False) is False
    assert higher.within(1e-9, higher_is_better=True) is True
    scattered = compare(baseline, twins, [1.0, 1.008, 1.0, 1.008])  # the same mean, its own standard error 0.0023
    assert scattered.within(0.0051, higher_is_better=False) is False
    assert compare([1.0] * 3, [1.0] * 3, [1.0] * 3).within(1.0, higher_is_better=True) is None


def test_an_allowance_is_a_number_or_a_share() -> None:
    assert allowance(0.005, 3.0) == allowance(" 0.005", 3.0) == 0.005
    assert allowance("0.5%", -3.0) == pytest.approx(0.015)
    assert allowance("2 %", 3.0) == pytest.approx(0.06)
    for bad in (0, -1, "-1%", "inf", "nan", "half", "%", ""):
        with pytest.raises(ValueError, match=r"is not a positive number such as 0.005, nor a share such as '0.5%'"):
            allowance(bad, 1.0)
