"""The search, on settings whose outcome is known without training."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from lowprec_plugin.tune.baseline import Baseline
from lowprec_plugin.tune.cost import Costs, Network
from lowprec_plugin.tune.records import Judge, Run
from lowprec_plugin.tune.search import Search
from lowprec_plugin.tune.space import Setting, Space, word_length
from tests.tune.test_space import space_of

EPOCHS = 8
SEEDS = 5
TOLERANCE = 0.1
RUNGS = (4, 6, 8, 10, 12, 16)


def baseline(noise: float = 0.001, tolerance: float | str = TOLERANCE) -> Baseline:
    def runs(shift: float) -> list[Run]:
        return [Run(None, seed, curve=[1.0 + shift] * EPOCHS, value=1.0 + shift) for seed in range(SEEDS)]

    return Baseline(runs(0.0), runs(noise), higher_is_better=False, allowed=tolerance)


class Trained:
    """Runs settings by a rule for how much worse they are, and counts."""

    def __init__(self, worse: Callable[[Setting, int], float | None]) -> None:
        self.worse = worse
        self.asked: list[tuple[Setting, int]] = []
        self.epochs = 0

    def __call__(self, setting: Setting, seed: int, judge: Judge | None) -> Run:
        self.asked.append((setting, seed))
        worse = self.worse(setting, seed)
        if worse is None:
            return Run(setting, seed, diverged="a gradient is not finite")
        for epoch in range(1, EPOCHS + 1):
            self.epochs += 1
            if judge is not None and judge(epoch, 1.0 + worse):
                return Run(setting, seed, curve=[1.0 + worse] * epoch, stopped=epoch)
        return Run(setting, seed, curve=[1.0 + worse] * EPOCHS, value=1.0 + worse)


def searched(space: Space, train: Trained, runs: int = 60) -> Search:
    shapes = {"layer.weight": (8, 256)}
    costs = Costs(space, Network(shapes, {"layer.weight": 2}, {}), {}, {})
    return Search(space, costs, baseline(), train, runs=runs, seed=0)


def bits(setting: Setting, kind: str) -> int:
    return word_length(setting[kind])


@pytest.mark.parametrize(("weights", "state"), [*itertools.product((4, 8, 12), (4, 6, 16))])
def test_the_cheapest_that_passes_is_found(weights: int, state: int) -> None:
    """By brute force over all settings; with far fewer runs than there are settings, most of the failing ones cut."""
    space = space_of(rounding=("stochastic", "nearest"), weights=RUNGS, state=RUNGS)

    def worse(setting: Setting, seed: int) -> float:
        enough = bits(setting, "weights") >= weights and bits(setting, "state") >= state
        return 0.01 if enough and setting["rounding"] == "stochastic" else 1.0

    train = Trained(worse)
    search = searched(space, train)
    best = search.result()
    passing = [setting for setting in space.settings() if worse(setting, 0) < TOLERANCE]
    costs = Costs(space, Network({"layer.weight": (8, 256)}, {"layer.weight": 2}, {}), {}, {})
    assert best is not None
    assert best.bits.cost == min(costs.of(setting).cost for setting in passing)
    assert best.confirmed
    assert search.closed
    assert len(search.trials) < space.size / 2
    assert train.epochs < EPOCHS * len(train.asked)
    assert all(trial.run.stopped in (2, 4) for trial in search.trials if trial.run.stopped is not None)


def test_no_setting_is_run_twice_nor_one_whose_outcome_is_known() -> None:
    space = space_of(weights=RUNGS, state=RUNGS)
    train = Trained(lambda setting, seed: 0.01 if bits(setting, "weights") >= 8 else 1.0)
    search = searched(space, train)
    assert search.result() is not None
    tried = [(bits(trial.setting, "weights"), bits(trial.setting, "state")) for trial in search.trials]
    assert len(set(tried)) == len(tried)
    for index, (weights, state) in enumerate(tried):
        for earlier in tried[:index]:
            failed = earlier[0] < 8
            assert not (failed and weights <= earlier[0] and state <= earlier[1])
            assert failed or not (weights >= earlier[0] and state >= earlier[1])


def test_what_other_seeds_do_not_confirm_is_left_for_the_next() -> None:
    """Eight bits pass with the search's seed by luck; and divergence with one seed is a failure too."""
    space = space_of(weights=RUNGS)

    def worse(setting: Setting, seed: int) -> float | None:
        width = bits(setting, "weights")
        if width == 8 and seed > 0:
            return 0.3
        if width == 10 and seed == 3:
            return None
        return 0.01 if width >= 8 else 1.0

    search = searched(space, Trained(worse))
    best = search.result()
    assert best is not None
    assert best.setting["weights"] == "fixed12"
    held = {bits(trial.setting, "weights"): trial.confirmed for trial in search.trials}
    assert (held[8], held[10], held[12]) == (False, False, True)


def test_a_mean_within_the_tolerance_is_not_enough_if_its_error_is_not() -> None:
    space = space_of(weights=[8, 16])
    scatter = [0.0, 0.2, 0.0, 0.2, -0.1]  # mean 0.075 over the seeds of the confirmation, standard error 0.075
    search = searched(space, Trained(lambda setting, seed: scatter[seed] if bits(setting, "weights") == 8 else 0.0))
    best = search.result()
    assert best is not None
    assert best.setting["weights"] == "fixed16"


def test_nothing_holds() -> None:
    search = searched(
        space_of(weights=RUNGS), Trained(lambda setting, seed: None if bits(setting, "weights") < 12 else 1.0)
    )
    assert search.result() is None
    assert not any(trial.passed for trial in search.trials)


def test_runs_are_a_limit() -> None:
    train = Trained(lambda setting, seed: 0.01)
    search = searched(space_of(weights=RUNGS, state=RUNGS), train, runs=1)
    assert search.result() is not None
    assert not search.closed
    assert len(search.trials) == 1
    assert len(train.asked) == 1 + (SEEDS - 1)


def test_large_spaces_are_searched_too() -> None:
    space = space_of(("a", "b", "c"), weights=RUNGS, state=RUNGS, activations=RUNGS, errors=RUNGS)
    best = searched(space, Trained(lambda s, _: 0.01 if min(bits(s, "weights"), bits(s, "errors")) >= 6 else 1.0), 12)
    result = best.result()
    assert result is not None
    assert bits(result.setting, "weights") >= 6


def test_a_tolerance_below_the_noise_is_refused_and_says_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"two standard errors of float32's own noise are 0\.2.*seeds=16"):
        baseline(noise=0.2, tolerance=0.1)
    enough = [Run(None, seed, value=1.0) for seed in range(17)]
    Baseline(enough, [Run(None, seed, value=1.2) for seed in range(17)], higher_is_better=False, allowed=0.1)


def test_a_relative_tolerance_is_of_float32s_mean() -> None:
    assert baseline(tolerance="10%").tolerance == pytest.approx(0.1)
    nothing = [Run(None, seed, curve=[0.0], value=0.0) for seed in range(SEEDS)]
    with pytest.raises(
        ValueError, match="tolerance='10%' of float32's mean, which is 0, allows nothing: give a number"
    ):
        Baseline(nothing, nothing, higher_is_better=True, allowed="10%")


def test_float32_that_diverges_is_the_users_to_mend() -> None:
    with pytest.raises(ValueError, match="float32 itself diverges with seed 1"):
        Baseline([Run(None, 0, value=1.0), Run(None, 1, diverged="x")], [], higher_is_better=True, allowed=0.1)
