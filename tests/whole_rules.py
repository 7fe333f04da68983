"""Rules that get whole arrays, and hooks that record: shared by the tests of them."""

from __future__ import annotations

from optimkit import Scalar, Transform, zeros

ENGINES = ["llvm", "eager"]


class Whole(Transform):
    """Calls a function with what it is given."""

    elementwise = False
    rate: Scalar = 0.5
    pair: tuple[Scalar, Scalar] = (1.0, 2.0)
    f: object = None

    def gradient(self, w, g, s, h, xp):
        return self.f(w, g, s, h, xp)


def whole(f, **numbers):
    return Whole(f=f, **numbers)


class Recalls(Transform):
    elementwise = False

    def slots(self):
        return {"last": zeros}

    def step(self, w, d, s, h, xp):
        return d + s.last, {"last": d}


class Keeps(Transform):
    elementwise = False

    def weight(self, w, new, s, h, xp):
        return w
