"""Perceptual losses: differences of image features of fixed networks."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..io.safetensors_file import open_safetensors

_SEED = 0  # the random features are the same in every training
_LPIPS_RANGE = 2.0  # normalized intensity that becomes 1 in LPIPS; most intensities are within
_LPIPS_SIDE = 32  # smallest image side in pixels: the networks of LPIPS halve it up to five times
_WEIGHTS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def perceptual_loss(kind: str) -> nn.Module:
    """Return a perceptual loss: a module called with images and targets, (B, H, W) each, normalized.

    Parameters
    ----------
    kind : str
        "random", "monai", or a file for `VGG16Features`; see `TrainSRSettings.perceptual_features`.

    Raises
    ------
    InputError
        If MONAI, or the weights it needs, are missing.
    OSError, FileFormatError
        If the file cannot be read.
    """
    if kind == "monai":
        return MonaiLoss()
    return FeatureLoss(RandomFeatures() if kind == "random" else VGG16Features(kind))


class FeatureLoss(nn.Module):
    """Perceptual loss [1]_: mean squared differences of features, summed over scales.

    References
    ----------
    .. [1] J. Johnson, A. Alahi & L. Fei-Fei, "Perceptual losses for real-time style transfer and super-resolution",
       ECCV 2016.
    """

    def __init__(self, features: VGG) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images (B, H, W)."""
        pairs = zip(self.features(images), self.features(targets), strict=True)
        return torch.stack([(a - b).square().mean() for a, b in pairs]).sum()


class VGG(nn.Module):
    """Convolutions with ReLU at successive scales of half the resolution; never trained.

    Parameters
    ----------
    widths : sequence of (int, int)
        Numbers of features and layers at each scale.
    channels : int
        Number of image channels; grey images are repeated.
    pool : type
        Pooling from one scale to the next.
    """

    def __init__(self, widths: Sequence[tuple[int, int]], channels: int, pool: type[nn.Module]) -> None:
        super().__init__()
        self.channels, self.pool, self.stages, before = channels, pool(2), nn.ModuleList(), channels
        for width, count in widths:
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.stages.append(nn.Sequential(*layers))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features of images (B, H, W) at each scale."""
        features, all_ = images[:, None].expand(-1, self.channels, -1, -1), []
        for k, stage in enumerate(self.stages):
            features = stage(self.pool(features) if k else features)
            all_.append(features)
        return all_


class RandomFeatures(VGG):
    """Features of a small VGG with random weights.

    Random features distinguish textures nearly as well as trained ones [1]_, and need no download.

    References
    ----------
    .. [1] I. Ustyuzhaninov et al., "Texture synthesis using shallow convolutional networks with random filters", 2016.
    """

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            super().__init__([(16, 2), (32, 2), (64, 2)], 1, nn.AvgPool2d)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)


class VGG16Features(VGG):
    """Features relu1_2 to relu4_3 of VGG-16 (Simonyan & Zisserman, ICLR 2015), with weights from a safetensors file.

    Normalized intensities, with median 0 and a span of about 4, are scaled approximately like ImageNet's.

    Parameters
    ----------
    path : str or path-like
        File with the tensor names of torchvision's vgg16: ``features.0.weight`` to ``features.21.bias``. Other tensors
        are ignored.

    Raises
    ------
    OSError
        If the file does not exist or may not be read.
    FileFormatError
        If the file is damaged, or a tensor is missing, has another shape or is not finite.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__([(64, 2), (128, 2), (256, 3), (512, 3)], 3, nn.MaxPool2d)
        with open_safetensors(path, "pt", "weights of VGG-16") as file:
            names, n = set(file.keys()), 0
            for stage in self.stages:
                for layer in (each for each in stage.modules() if isinstance(each, nn.Conv2d)):
                    for part, wanted in layer.named_parameters():
                        _copy(file, names, f"features.{n}.{part}", wanted)
                    n += 2  # and a rectifier
                n += 1  # pooling


class MonaiLoss(nn.Module):
    """MONAI's `PerceptualLoss` (LPIPS, Zhang et al., CVPR 2018) with weights from torch's cache.

    Parameters
    ----------
    network : {"vgg", "alex", "squeeze"}

    Raises
    ------
    InputError
        If MONAI or its dependencies cannot be imported, or torchvision's weights of the network are not in torch's
        cache. Nothing is downloaded.
    """

    def __init__(self, network: str = "vgg") -> None:
        super().__init__()
        try:
            importlib.import_module("lpips")
            models = importlib.import_module("torchvision.models")
            losses = importlib.import_module("monai.losses")
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision built for another torch
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(
                "MONAI's perceptual loss needs monai, lpips and torchvision (pip install 'napari-gsvolume[monai]'), "
                f"which cannot be imported: {reason}."
            ) from error
        name = Path(getattr(models, _WEIGHTS[network]).IMAGENET1K_V1.url).name
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not (folder / name).is_file():
            raise InputError(
                f"MONAI's perceptual loss needs torchvision's weights {name}, which are not in {folder}; put them "
                "there, or choose another perceptual loss."
            )
        self.loss = _build_weights_only(losses.PerceptualLoss, spatial_dims=2, network_type=network)
        self.requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images (B, H, W)."""
        height, width = images.shape[1:]
        around = (0, max(0, _LPIPS_SIDE - width), 0, max(0, _LPIPS_SIDE - height))
        pair = (nn.functional.pad(each[:, None] / _LPIPS_RANGE, around, "replicate") for each in (images, targets))
        loss: Tensor = self.loss(*pair)
        return loss


def _copy(file: Any, names: set[str], name: str, wanted: Tensor) -> None:
    if name not in names:
        raise InputError(f"the tensor {name} is missing")
    shape = tuple(file.get_slice(name).get_shape())
    if shape != wanted.shape:
        raise InputError(f"the shape of {name} is {shape}, not {tuple(wanted.shape)}")
    tensor = file.get_tensor(name)
    if not tensor.isfinite().all():
        raise InputError(f"{name} is not finite")
    wanted.copy_(tensor)


def _build_weights_only(build: Any, **options: Any) -> Any:
    """Return ``build(**options)`` while torch loads tensors only: torchvision would unpickle anything."""
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with warnings.catch_warnings(action="ignore"):  # lpips uses the torchvision interface of before 0.13
            return build(**options)
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before
