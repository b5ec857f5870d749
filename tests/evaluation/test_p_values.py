from __future__ import annotations

import numpy as np
import pytest

from mavil.evaluation.p_values import holm, mcnemar_p, two_sided_p


def test_p_values_have_known_answers() -> None:
    assert two_sided_p(np.array([1.0] * 99)) == 1 / 100
    assert two_sided_p(np.array([1.0] * 95 + [-1.0] * 5)) == pytest.approx(0.1)
    assert two_sided_p(np.array([-1.0] * 95 + [1.0] * 5)) == pytest.approx(0.1)
    assert two_sided_p(np.zeros(10)) == 1
    # The chance of at most 1 head, or at least 9, of 10 throws: 22 of 1024.
    assert mcnemar_p(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar_p(0, 0) == 1
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
