"""Perceptual losses: differences of what networks that are not trained here make of images."""

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

_SEED = 0  # of random features, which are the same in every training
_LPIPS_RANGE = 2.0  # normalised intensities that become 1 there; most are within
_LEAST = 32  # pixels of an image's sides, as the networks of LPIPS halve them up to five times
_WEIGHTS = {"vgg": "VGG16_Weights", "alex": "AlexNet_Weights", "squeeze": "SqueezeNet1_1_Weights"}
_ONLY_WEIGHTS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def perceptual_loss(kind: str) -> nn.Module:
    """Return a perceptual loss, called with images and targets, (B, H, W) each, normalised.

    Parameters
    ----------
    kind : str
        "random", "monai", or a file for `VGG16Features`; see `TrainSRSettings.perceptual`.

    Raises
    ------
    ValueError
        If MONAI, or the weights it needs, are not there.
    OSError, FileFormatError
        If the file cannot be read.
    """
    if kind == "monai":
        return MonaiLoss()
    return FeatureLoss(RandomFeatures() if kind == "random" else VGG16Features(kind))


class FeatureLoss(nn.Module):
    """The mean squared differences of features, summed over scales (Johnson, Alahi & Fei-Fei, ECCV 2016)."""

    def __init__(self, features: VGG) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images (B, H, W)."""
        pairs = zip(self.features(images), self.features(targets), strict=True)
        return torch.stack([(a - b).square().mean() for a, b in pairs]).sum()


class VGG(nn.Module):
    """Convolutions with rectifiers at scales of half the resolution each; never learned.

    Parameters
    ----------
    widths : sequence of (int, int)
        Features and layers of each scale.
    channels : int
        Of the images; grey ones are repeated.
    pool : callable
        From one scale to the next.
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
    """Features of a small VGG of random weights.

    Such features tell textures apart nearly as those of trained ones do (Ustyuzhaninov et al. 2016, "Texture synthesis
    using shallow convolutional networks with random filters"), and need no download.
    """

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            super().__init__([(16, 2), (32, 2), (64, 2)], 1, nn.AvgPool2d)
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)


class VGG16Features(VGG):
    """Features of VGG-16 (Simonyan & Zisserman, ICLR 2015), relu1_2 to relu4_3, of weights in a safetensors file.

    Normalised intensities, whose median is 0 and whose span is about 4, are about as ImageNet's are normalised.

    Parameters
    ----------
    path : str or path-like
        Tensors are named as torchvision's vgg16 has them: ``features.0.weight`` to ``features.21.bias``. Others are
        ignored.

    Raises
    ------
    OSError
        If the file does not exist or may not be read.
    FileFormatError
        If it is damaged, or lacks a tensor, or one has another shape or is not finite.
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
    """MONAI's `PerceptualLoss`, that is LPIPS (Zhang et al., CVPR 2018), on weights that are on this machine already.

    Parameters
    ----------
    network : {"vgg", "alex", "squeeze"}

    Raises
    ------
    ValueError
        If MONAI or what it needs cannot be imported, or torchvision's weights of the network are not where torch looks
        for them. Nothing is downloaded.
    """

    def __init__(self, network: str = "vgg") -> None:
        super().__init__()
        try:
            importlib.import_module("lpips")
            models = importlib.import_module("torchvision.models")
            losses = importlib.import_module("monai.losses")
        except (ImportError, RuntimeError) as error:  # the latter of a torchvision made for another torch
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
        self.loss = _made_of_weights_only(losses.PerceptualLoss, spatial_dims=2, network_type=network)
        self.requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of images (B, H, W)."""
        height, width = images.shape[1:]
        around = (0, max(0, _LEAST - width), 0, max(0, _LEAST - height))
        pair = (nn.functional.pad(each[:, None] / _LPIPS_RANGE, around, "replicate") for each in (images, targets))
        loss: Tensor = self.loss(*pair)
        return loss


def _copy(file: Any, names: set[str], name: str, wanted: Tensor) -> None:
    if name not in names:
        raise InputError(f"it lacks {name}")
    shape = tuple(file.get_slice(name).get_shape())
    if shape != wanted.shape:
        raise InputError(f"the shape of {name} is {shape}, not {tuple(wanted.shape)}")
    tensor = file.get_tensor(name)
    if not tensor.isfinite().all():
        raise InputError(f"{name} is not finite")
    wanted.copy_(tensor)


def _made_of_weights_only(make: Any, **how: Any) -> Any:
    """Return what is made, while torch loads tensors alone: torchvision would have it unpickle anything."""
    before = os.environ.get(_ONLY_WEIGHTS)
    os.environ[_ONLY_WEIGHTS] = "1"
    try:
        with warnings.catch_warnings(action="ignore"):  # lpips calls torchvision as was usual before 0.13
            return make(**how)
    finally:
        if before is None:
            del os.environ[_ONLY_WEIGHTS]
        else:
            os.environ[_ONLY_WEIGHTS] = before
