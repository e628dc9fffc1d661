import pytest

from intformer.link import build as library
from intformer_testing import random_hf, sanitized, small_tokenizer, toy


def pytest_collection_modifyitems(items):
    sanitized.skip_others(items)


@pytest.fixture(scope="session", autouse=True)
def sanitizers():
    """Build with sanitizers where the environment says so."""
    with pytest.MonkeyPatch.context() as patch:
        sanitized.patch(patch)
        yield


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


@pytest.fixture(scope="module")
def quiet():
    """No progress bars of transformers."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def one_thread():
    """Small products gain nothing from threads, and lose much where other programs run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """Return (family, head, shape) -> (directory, float model), random."""
    made = {}

    def make(family="bert", head="sequence-classification", **shape):
        key = family, head, *shape.items()
        if key not in made:
            folder = tmp_path_factory.mktemp("model")
            made[key] = folder, random_hf.save(folder, family, head, **shape)
        return made[key]

    return make


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    """Directory of a random encoder without a head, with a tokenizer."""
    folder = tmp_path_factory.mktemp("source")
    random_hf.save(folder, "bert", "features", hidden=32, heads=4, ffn=64)
    small_tokenizer.save(folder)
    return folder
