"""Finds the cheapest setting that keeps the metric: a few runs on one seed, then a confirmation on others.

Every run uses one seed, the same for float32 and all settings. Optuna's tree-structured Parzen estimator proposes
settings, and its asynchronous successive halving stops, after a quarter and after half of the epochs, runs that are
worse than float32 at the same epoch by more than tolerance and noise allow. What a run has shown is not run again: a
setting that is nowhere wider than one that failed clearly fails, and one that is nowhere narrower than one that passed
costs more.

Nothing here is random but Optuna's proposals, which are seeded: a search that was interrupted is simply repeated, its
finished runs read from their records.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lowprec_plugin.quality import Comparison
from lowprec_plugin.tune.baseline import Baseline
from lowprec_plugin.tune.cost import Bits, Costs
from lowprec_plugin.tune.frontier import frontier
from lowprec_plugin.tune.records import Judge, Run
from lowprec_plugin.tune.space import Setting, Space, narrower

#: Runs a setting: which, with which seed, and who may stop it.
Train = Callable[[Setting, int, "Judge | None"], Run]

#: After so many proposals in a row of what is known already, the open setting in the middle of the cost is run.
_PATIENCE = 20
#: At most so many settings are looked through for open ones.
_LOOKED_THROUGH = 5000
#: A failing setting's score is 1 and more, above every cost; so much more at most.
_WORST = 1000.0


@dataclass(frozen=True)
class Trial:
    """A setting that was run.

    Attributes:
        bits: what it costs.
        worse: than float32 with the search's seed; ``None`` if the run did not end.
        passed: within the tolerance, with the search's seed.
        confirmation: its runs with the other seeds beside float32's; ``None`` if there are none, or one diverged.
        confirmed: whether that holds; ``None``: not tried.
    """

    run: Run
    bits: Bits
    worse: float | None
    passed: bool
    confirmation: Comparison | None = None
    confirmed: bool | None = None

    @property
    def setting(self) -> Setting:
        """What was run."""
        assert self.run.setting is not None
        return self.run.setting

    @property
    def point(self) -> tuple[float, float]:
        """Cost, and how much worse than float32."""
        return self.bits.cost, math.inf if self.worse is None else self.worse


class Search:
    """One search.

    Args:
        space, costs: what can be chosen, and what it costs.
        baseline: float32.
        train: runs a setting.
        runs: settings to try, at most.
        seed: of the search's runs and of Optuna.

    Attributes:
        trials: what was run, in order.
    """

    def __init__(self, space: Space, costs: Costs, baseline: Baseline, train: Train, *, runs: int, seed: int) -> None:
        import optuna

        self._space, self._costs, self._baseline, self._train = space, costs, baseline, train
        self._runs, self._seed = runs, seed
        self.trials: list[Trial] = []
        self._failed: list[Setting] = []
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="minimize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, math.ceil(baseline.epochs / 4)), reduction_factor=2
            ),
        )
        for share in (1.0, 0.5):
            for rounding in space.ladders["rounding"]:
                self._propose(space.at(share, rounding))

    def result(self) -> Trial | None:
        """The cheapest setting that is confirmed, or ``None``; further settings are tried where one is not."""
        while True:
            self._explore()
            passed = [trial for trial in self.trials if trial.passed and trial.confirmed is None]
            best = [passed[index] for index in frontier([trial.point for trial in passed])]
            if not best:
                return None
            trial = self._confirm(best[0])
            self.trials[self.trials.index(best[0])] = trial
            if trial.confirmed:
                return trial
            self._failed.append(trial.setting)

    @property
    def closed(self) -> bool:
        """Whether no setting is left that is cheaper than the best and of which nothing is known."""
        return self._space.size <= _LOOKED_THROUGH and not self._open()

    def _explore(self) -> None:
        known = 0
        while len(self.trials) < self._runs:
            proposal = self._study.ask()
            setting = self._setting_of(proposal)
            score = self._known(setting)
            if score is None:
                self._try(proposal, setting)
                known = 0
                continue
            self._study.tell(proposal, score)
            known += 1
            if known >= _PATIENCE:
                open_ = self._open()
                if not open_:
                    return
                self._propose(open_[len(open_) // 2])

    def _try(self, proposal: Any, setting: Setting) -> None:
        from optuna.trial import TrialState

        judged: dict[int, bool] = {}  # a run may be replayed from its record, and then run after all

        def judge(epoch: int, value: float) -> bool:
            if not math.isfinite(value):
                return True
            if epoch >= self._baseline.epochs:
                return False
            if epoch not in judged:
                proposal.report(self._baseline.excess_at(epoch, value), epoch)
                judged[epoch] = bool(proposal.should_prune())
            return judged[epoch]

        run = self._train(setting, self._seed, judge)
        worse = None if run.value is None else self._baseline.worse(run.value)
        trial = Trial(run, self._costs.of(setting), worse, worse is not None and worse <= self._baseline.tolerance)
        self.trials.append(trial)
        if run.value is None or self._baseline.excess(run.value) > 0:
            self._failed.append(setting)
        if run.stopped is not None:
            self._study.tell(proposal, state=TrialState.PRUNED)
        else:
            self._study.tell(proposal, self._score(trial))

    def _score(self, trial: Trial) -> float:
        """What Optuna makes small: the cost of what passes; above it, how far the rest is from passing."""
        if trial.passed:
            return trial.bits.cost
        return 1.0 + min(_WORST, math.inf if trial.worse is None else trial.worse / self._baseline.tolerance)

    def _known(self, setting: Setting) -> float | None:
        """The score of a setting that need not be run."""
        for trial in self.trials:
            if trial.setting == setting:
                return self._score(trial)
        if any(narrower(setting, failed) for failed in self._failed):
            return 1.0 + _WORST
        if any(
            trial.passed and trial.confirmed is not False and narrower(trial.setting, setting) for trial in self.trials
        ):
            return self._costs.of(setting).cost
        return None

    def _open(self) -> list[Setting]:
        """Settings of which nothing is known that are cheaper than the best, by rising cost."""
        best = min((t.bits.cost for t in self.trials if t.passed and t.confirmed is not False), default=math.inf)
        if self._space.size <= _LOOKED_THROUGH:
            settings = list(self._space.settings())
        else:
            draw = random.Random(self._seed)
            ladders = self._space.ladders.items()
            settings = [{name: draw.choice(ladder) for name, ladder in ladders} for _ in range(_LOOKED_THROUGH)]
        costs = [(self._costs.of(setting).cost, index) for index, setting in enumerate(settings)]
        return [
            settings[index] for cost, index in sorted(costs) if cost < best and self._known(settings[index]) is None
        ]

    def _confirm(self, trial: Trial) -> Trial:
        seeds = [run.seed for run in self._baseline.runs[1:]]
        runs = [self._train(trial.setting, seed, None) for seed in seeds]
        if any(run.value is None for run in runs):
            return replace(trial, confirmed=False)
        comparison = self._baseline.confirmed(self._baseline.values(runs))
        held = comparison.within(self._baseline.tolerance, higher_is_better=self._baseline.higher_is_better)
        return replace(trial, confirmation=comparison, confirmed=bool(held))

    def _propose(self, setting: Setting) -> None:
        indices = {name: ladder.index(setting[name]) for name, ladder in self._space.ladders.items()}
        self._study.enqueue_trial({**indices, "rounding": setting["rounding"]})

    def _setting_of(self, proposal: Any) -> Setting:
        setting = {}
        for name, ladder in self._space.ladders.items():
            if name == "rounding":
                setting[name] = str(proposal.suggest_categorical(name, ladder))
            else:  # as whole numbers, so that Optuna knows which rung is above which
                setting[name] = ladder[proposal.suggest_int(name, 0, len(ladder) - 1)]
        return setting
