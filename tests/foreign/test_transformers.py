"""Directories as transformers writes them: every family and head."""

import pytest

from intformer_testing import random_hf
from intformer_testing.foreign.directories import save
from intformer_testing.foreign.expect import equal_to
from intformer_testing.foreign.libraries import Transformers


@pytest.mark.parametrize(
    ("family", "head"), [(f, h) for f in random_hf.CLASSES for h in random_hf.heads_of(f)]
)
@equal_to(Transformers)
def test_family_and_head(folder, family, head):
    save(folder, family, head)
