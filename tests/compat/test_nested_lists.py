"""What looks into lists of lists finds torch's operators, or says what is missing."""

from __future__ import annotations

import pytest

from lowprec_plugin.compat.nested_lists import look_first


def test_an_operator_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"^torch \S+ has no torch\.ops\.c10d\.frobnicate_, which is needed to refuse"):
        look_first(("frobnicate_",), lambda operator, args: None)
