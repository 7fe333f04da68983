"""A link that does nothing, or has a hook whose name is misspelt, is refused when an optimizer is built (fault 56)."""

from __future__ import annotations

import numpy as np
import pytest

from optimkit import SGD, Penalty, Transform


class Misspelt(Transform):
    def gradients(self, w, g, s, h, xp):
        return 2.0 * g


class AlsoMisspelt(Transform):
    def grad(self, w, g, s, h, xp):
        return 2.0 * g

    def step(self, w, d, s, h, xp):
        return 2.0 * d


class Nothing(Transform):
    def helper(self, x):
        return x


class MisspeltPenalty(Penalty):
    def penalize(self, w, h, xp):
        return w

    def steps(self, w, d, s, h, xp):
        return d


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": [Misspelt()]}, r"Misspelt.gradients\(self, w, g, s, h, xp\) looks like .* gradient, step, weight"),
        ({"transforms": [AlsoMisspelt()]}, r"AlsoMisspelt.grad\(self, w, g, s, h, xp\) looks like a hook"),
        ({"transforms": [Nothing()]}, "Nothing defines no hook and would do nothing; a Penalty defines penalize"),
        ({"penalty": MisspeltPenalty()}, r"MisspeltPenalty.steps\(self, w, d, s, h, xp\) looks like a hook"),
    ],
)
def test_a_link_without_a_hook_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        SGD(np.ones(3), lr=0.1, **options)
