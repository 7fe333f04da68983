"""Testing of rules, ours and yours: checks on all backends, the oracle, and the list of backends.

    from optimkit.testing import check_optimizer

    def test_mine():
        check_optimizer(MyOptimizer, lr=0.1)

`optimkit.testing.fixtures` is a pytest plugin with the same list of backends as a fixture; nothing
else here needs pytest.
"""

from optimkit.testing.backends import BACKENDS, LAYOUTS, TOLERANCES, Backend
from optimkit.testing.check import Report, check_optimizer, check_penalty, check_transform
from optimkit.testing.oracle import Oracle

__all__ = ["BACKENDS", "LAYOUTS", "TOLERANCES", "Backend", "Oracle", "Report", "check_optimizer", "check_penalty"]
__all__ += ["check_transform"]
