"""Residual networks: predict the residual of a spline from low-resolution slices and their splines.

Each network takes a slice with its neighbours, ``low`` (B, C, h, w), and their splines, ``base`` (B, C, H, W), both
normalized, and returns the residual (B, 1, H, W) of the middle one. The residual of an untrained network is 0. Networks
that use ``low`` only accept ``base`` of the middle slice alone.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .bspline import interpolation_matrix
from .degradation import apply_separable
from .settings import SPANDREL_BACKBONES, TrainSRSettings

_RESIDUAL_SCALE = 0.1  # initial scale of residual blocks, so that deep stacks of them start near the identity
_HEADS = 4  # attention heads; they divide the channels


class ResidualNetwork(nn.Module):
    """Base class of the residual networks.

    Attributes
    ----------
    sees_base : bool
        Whether the input of the network is ``base`` instead of ``low``.
    """

    sees_base = False


class EDSR(ResidualNetwork):
    """EDSR [1]_: residual blocks without batch norm at low resolution, followed by a pixel shuffle.

    For fractional factors, features are interpolated instead of shuffled.

    References
    ----------
    .. [1] B. Lim et al., "Enhanced deep residual networks for single image super-resolution", CVPR workshops, 2017.
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
        matrices = [None if f == 1 else interpolation_matrix(n, f, 1) for n, f in axes]
        residual: Tensor = self.tail(apply_separable(features, matrices))
        return residual


class ResNet(ResidualNetwork):
    """Residual blocks at high resolution, each with a final ReLU (He et al., CVPR 2016, without batch norm)."""

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
    """U-Net on the spline: three scales with doubled numbers of features (Ronneberger et al., MICCAI 2015)."""

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


class SpandrelNetwork(ResidualNetwork):
    """Network of the package spandrel, with its last layer set to 0 so that its output starts as a zero residual.

    RCAN: Y. Zhang et al., ECCV 2018. SwinIR: J. Liang et al., ICCV workshops 2021. HAT: X. Chen et al., CVPR 2023.

    Raises
    ------
    InputError
        If spandrel cannot be imported.
    """

    def __init__(self, name: str, depth: int, factor: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.network = _spandrel_network(name, depth, factor, channels, blocks)
        _zero([layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d)][-1])
        # SwinIR and HAT take three slices for RGB, and would add the mean colour of photographs.
        self.network.mean = torch.zeros(1, 1, 1, 1)

    def forward(self, low: Tensor, base: Tensor) -> Tensor:
        """Return the residual (B, 1, H, W)."""
        middle = low.shape[1] // 2
        # spandrel's RCAN scales its input in place.
        residual: Tensor = self.network(low.clone())[:, middle : middle + 1]
        return residual


def build_network(settings: TrainSRSettings) -> ResidualNetwork:
    """Return the residual network for settings of scheme B."""
    depth, channels, blocks = settings.depth, settings.channels, settings.blocks
    if settings.backbone in SPANDREL_BACKBONES:
        return SpandrelNetwork(settings.backbone, depth, int(settings.factor), channels, blocks)
    if settings.backbone == "edsr":
        return EDSR(depth, settings.factors, channels, blocks)
    return (ResNet if settings.backbone == "resnet" else UNet)(depth, channels, blocks)


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels, channels), _conv(channels, channels)
        with torch.no_grad():
            self.second.weight.mul_(_RESIDUAL_SCALE)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = features + self.second(torch.relu(self.first(features)))
        return result


def _stage(a: int, b: int, blocks: int) -> nn.Module:
    return nn.Sequential(_conv(a, b), nn.ReLU(), *(_Block(b) for _ in range(max(1, blocks // 4))))


def _conv(a: int, b: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _spandrel_network(name: str, depth: int, factor: int, channels: int, blocks: int) -> Any:
    kind = {"rcan": "RCAN", "swinir": "SwinIR", "hat": "HAT"}[name]
    try:
        architecture = getattr(importlib.import_module(f"spandrel.architectures.{kind}"), kind)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"{name} needs spandrel (pip install 'napari-gsvolume[sr]'), which cannot be imported: {reason}."
        ) from error
    groups = max(1, blocks // 2)  # groups of two blocks: attention in windows, and in shifted windows
    if name == "rcan":
        return architecture(
            scale=factor, n_colors=depth, norm=False, n_feats=channels, n_resgroups=groups, n_resblocks=2, reduction=4
        )
    size = {"in_chans": depth, "embed_dim": channels - channels % _HEADS, "window_size": 8, "upscale": factor}
    layers = {"depths": [2] * groups, "num_heads": [_HEADS] * groups, "mlp_ratio": 2.0, "drop_path_rate": 0.0}
    if name == "swinir":
        return architecture(upsampler="pixelshuffledirect", **size, **layers)
    return architecture(
        upsampler="pixelshuffle", compress_ratio=4, squeeze_factor=4, num_feat=channels, **size, **layers
    )
