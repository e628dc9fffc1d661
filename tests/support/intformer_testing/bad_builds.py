"""Builders of candidates that go wrong, for processes that do not see the tests' own modules."""

import time

from intformer.tuning.build import build

RIGHT_TILE = 83  # the default of most products


def wrong_sums(form, target, decisions, objects):
    """Clamp at another number wherever a product has another tile than the default."""
    if decisions.get("tile", RIGHT_TILE) != RIGHT_TILE:
        form = form.replace('"lo":-127', '"lo":-100')
    return build(form, target, decisions, objects)


def endless(form, target, decisions, objects):
    """Never come back."""
    time.sleep(1000)


def broken(form, target, decisions, objects):
    """Die as LLVM does."""
    raise SystemExit(3)
