import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests keep objects in a folder of their own, child processes included."""
    before = os.environ.get("INTFORMER_CACHE")
    os.environ["INTFORMER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["INTFORMER_CACHE"]
    if before is not None:
        os.environ["INTFORMER_CACHE"] = before


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the hashes of tests/golden and the generated tables of the documents",
    )
