import pytest


@pytest.fixture
def folder(tmp_path):
    """An empty directory for a case to write a model into."""
    path = tmp_path / "model"
    path.mkdir()
    return path
