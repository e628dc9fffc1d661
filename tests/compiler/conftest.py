import pytest
import toy

from intformer import library


@pytest.fixture(scope="session")
def toy_object(tmp_path_factory):
    """The toy kernels, compiled by TVM for any x86-64 CPU."""
    return toy.object_file(tmp_path_factory.mktemp("object"))


@pytest.fixture(scope="session")
def toy_variant(toy_object):
    """The only variant of most toy libraries."""
    return library.Variant("x86-64", [toy_object])


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory, toy_variant):
    """Return a function that builds a toy library: (name, seed, rows, options) -> path."""

    def make(name="toy", seed=0, rows="token", meta=None, variants=(toy_variant,), **options):
        folder = tmp_path_factory.mktemp(name)
        plan, model = toy.plan(seed, rows), toy.model(seed, **(meta or {}))
        path = folder / f"lib{name}.so"
        return library.build(plan, variants, model, path, target="x86-64", **options)

    return make


@pytest.fixture(scope="session")
def toy_path(toy_library):
    """A token-rows library that tests share."""
    return toy_library(header=True)
