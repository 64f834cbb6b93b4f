"""Every random number of these tests comes from SEED. Without the training packages they are skipped."""

import pytest


@pytest.fixture(autouse=True)
def seeded():
    import torch
    from helpers.random_pictures import SEED

    print(f"seed {SEED}")
    torch.manual_seed(SEED)
