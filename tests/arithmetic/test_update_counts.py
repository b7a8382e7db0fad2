from __future__ import annotations

from lowprec_plugin.arithmetic.update_counts import UpdateCounts, total


def test_totals() -> None:
    one, other = UpdateCounts(8, 4, 2, 1, 3, 4.0, 1.0), UpdateCounts(2, 0, 0, 0, 0, 0.0, 0.0)
    both = total([one, other])
    assert both == (10, 4, 2, 1, 3, 4.0, 1.0)
    assert (both.lost_share, both.unchanged_share, both.saturated_share) == (0.5, 0.25, 0.3)
    assert both.noise_to_update == 0.5
    assert total([]) == UpdateCounts()
    assert UpdateCounts().noise_to_update == UpdateCounts().lost_share == 0.0
