"""Networks that predict what a spline lacks, from images of low resolution and their splines.

Each is called with a slice and its neighbours, ``low`` (B, C, h, w), and their splines, ``base`` (B, C, H, W); both are
normalised, the middle one of C is predicted, and the residual returned is (B, 1, H, W). All begin with a residual of 0.
Those that look at ``low`` alone may be given the middle one of ``base`` alone.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .bspline import interpolation
from .degradation import separable
from .settings import FOREIGN, TrainSRSettings

_STEM = 0.1  # of what a residual block adds at first: deep stacks of them then begin near to the identity
_HEADS = 4  # of attention, which divide the features


class ResidualNetwork(nn.Module):
    """What all of them are.

    Attributes
    ----------
    sees_base : bool
        Whether it works on ``base``, and not on ``low``.
    """

    sees_base = False


class EDSR(ResidualNetwork):
    """Residual blocks without batch norm at low resolution, and a shuffle of pixels to the high one.

    B. Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPR workshops 2017. Where a
    factor is not whole, features are interpolated instead of shuffled.
    """

    def __init__(self, depth: int, factors: tuple[float, float], channels: int, blocks: int) -> None:
        super().__init__()
        self.factors = factors
        self.whole = all(f == int(f) for f in factors)
        self.head = _conv(depth, channels)
        self.body = nn.Sequential(*(_Block(channels) for _ in range(blocks)), _conv(channels, channels))
        self.tail = _zero(_conv(channels, int(factors[0] * factors[1]) if self.whole else 1))

    def forward(self, low: Tensor, base: Tensor) -> Tensor:
        """Return the residual (B, 1, H, W)."""
        features = self.head(low)
        features = features + self.body(features)
        if self.whole:
            fy, fx = (int(f) for f in self.factors)
            shuffled: Tensor = self.tail(features).unflatten(1, (fy, fx)).permute(0, 3, 1, 4, 2)  # (B, h, fy, w, fx)
            return shuffled.flatten(3, 4).flatten(1, 2)[:, None]
        axes = zip(low.shape[2:], self.factors, strict=True)
        matrices = [None if f == 1 else interpolation(n, f, 1) for n, f in axes]
        residual: Tensor = self.tail(separable(features, matrices))
        return residual


class ResNet(ResidualNetwork):
    """Residual blocks at high resolution, each with a rectifier at its end (He et al., CVPR 2016, without norms)."""

    sees_base = True

    def __init__(self, depth: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.head = _conv(depth, channels)
        self.body = nn.ModuleList(_Block(channels) for _ in range(blocks))
        self.tail = _zero(_conv(channels, 1))

    def forward(self, low: Tensor, base: Tensor) -> Tensor:
        """Return the residual (B, 1, H, W)."""
        features = torch.relu(self.head(base))
        for block in self.body:
            features = torch.relu(block(features))
        residual: Tensor = self.tail(features)
        return residual


class UNet(ResidualNetwork):
    """Three scales of the spline, each of twice as many features (Ronneberger et al., MICCAI 2015)."""

    sees_base = True

    def __init__(self, depth: int, channels: int, blocks: int) -> None:
        super().__init__()
        sizes = channels, 2 * channels, 4 * channels
        self.down = nn.ModuleList(_stage(a, b, blocks) for a, b in zip((depth, *sizes[:2]), sizes, strict=True))
        self.up = nn.ModuleList(_stage(a + b, b, blocks) for a, b in zip(sizes[:0:-1], sizes[1::-1], strict=True))
        self.tail = _zero(_conv(channels, 1))

    def forward(self, low: Tensor, base: Tensor) -> Tensor:
        """Return the residual (B, 1, H, W)."""
        height, width = base.shape[2:]
        features = nn.functional.pad(base, (0, -width % 4, 0, -height % 4), mode="replicate")
        kept = []
        for k, stage in enumerate(self.down):
            features = stage(nn.functional.avg_pool2d(features, 2) if k else features)
            kept.append(features)
        for stage, fine in zip(self.up, kept[1::-1], strict=True):
            features = stage(torch.cat([nn.functional.interpolate(features, scale_factor=2), fine], 1))
        residual: Tensor = self.tail(features)[..., :height, :width]
        return residual


class Foreign(ResidualNetwork):
    """A network of spandrel, whose images are residuals once its last layer begins at 0.

    RCAN: Y. Zhang et al., ECCV 2018. SwinIR: J. Liang et al., ICCV workshops 2021. HAT: X. Chen et al., CVPR 2023.

    Raises
    ------
    ValueError
        If spandrel cannot be imported.
    """

    def __init__(self, name: str, depth: int, factor: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.network = _foreign(name, depth, factor, channels, blocks)
        _zero([layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d)][-1])
        # Of three slices SwinIR and HAT take the middle one for green, and add the mean of its pixels in photographs.
        self.network.mean = torch.zeros(1, 1, 1, 1)

    def forward(self, low: Tensor, base: Tensor) -> Tensor:
        """Return the residual (B, 1, H, W)."""
        middle = low.shape[1] // 2
        # spandrel's RCAN scales what it is given in place.
        residual: Tensor = self.network(low.clone())[:, middle : middle + 1]
        return residual


def network(settings: TrainSRSettings) -> ResidualNetwork:
    """Return the residual network that the settings of a scheme b ask for."""
    depth, channels, blocks = settings.depth, settings.channels, settings.blocks
    if settings.backbone in FOREIGN:
        return Foreign(settings.backbone, depth, int(settings.factor), channels, blocks)
    if settings.backbone == "edsr":
        return EDSR(depth, settings.factors, channels, blocks)
    return (ResNet if settings.backbone == "resnet" else UNet)(depth, channels, blocks)


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(_STEM)

    def forward(self, features: Tensor) -> Tensor:
        added: Tensor = features + self.second(torch.relu(self.first(features)))
        return added


def _stage(a: int, b: int, blocks: int) -> nn.Module:
    return nn.Sequential(_conv(a, b), nn.ReLU(), *(_Block(b) for _ in range(max(1, blocks // 4))))


def _conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _foreign(name: str, depth: int, factor: int, channels: int, blocks: int) -> Any:
    kind = {"rcan": "RCAN", "swinir": "SwinIR", "hat": "HAT"}[name]
    try:
        made = getattr(importlib.import_module(f"spandrel.architectures.{kind}"), kind)
    except (ImportError, RuntimeError) as error:  # the latter of a torchvision made for another torch
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{name} needs spandrel (pip install 'napari-gsvolume[sr]'), which cannot be imported: {reason}."
        ) from error
    groups = max(1, blocks // 2)  # of two blocks: attention within windows, and within shifted ones
    if name == "rcan":
        return made(
            scale=factor, n_colors=depth, norm=False, n_feats=channels, n_resgroups=groups, n_resblocks=2, reduction=4
        )
    size = {"in_chans": depth, "embed_dim": channels - channels % _HEADS, "window_size": 8, "upscale": factor}
    layers = {"depths": [2] * groups, "num_heads": [_HEADS] * groups, "mlp_ratio": 2.0, "drop_path_rate": 0.0}
    if name == "swinir":
        return made(upsampler="pixelshuffledirect", **size, **layers)
    return made(upsampler="pixelshuffle", compress_ratio=4, squeeze_factor=4, num_feat=channels, **size, **layers)
