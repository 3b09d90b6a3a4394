"""What the tests of learned super-resolution share."""

import numpy as np
import torch

from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.settings import validated
from napari_gsvolume.super_resolution.settings import TrainSRSettings

SMALL = {"channels": 8, "blocks": 1, "batch_size": 2}
QUICK = SMALL | {"iterations": 6}
VOLUME = anatomical_phantom(40)[0][:, 2:38, 1:36]


def settings(**more) -> TrainSRSettings:
    return validated(TrainSRSettings, **SMALL | more)


def stirred(module, seed=0):
    """Return a module whose weights, those that begin at 0 too, are all random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return module


def slices(*shape, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
