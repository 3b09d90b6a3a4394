"""Loss functions of super-resolution training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .degradation import Degradation
from .perceptual import perceptual_loss
from .schemes import Prediction, Scheme


class Losses(nn.Module):
    """Weighted sum of loss terms, with fixed or trained weights.

    With uncertainty weighting [1]_ the sum is ``sum_i exp(-e_i) w_i L_i + e_i``, with a trained e_i for each term.

    Raises
    ------
    InputError, OSError
        If the perceptual loss is not available.

    References
    ----------
    .. [1] A. Kendall, Y. Gal & R. Cipolla, "Multi-task learning using uncertainty to weigh losses for scene geometry
       and semantics", CVPR 2018.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        s = scheme.settings
        self.scheme = (scheme,)  # in a tuple: its parameters do not belong to this module
        self.weights = {
            "squared": s.l2_weight,
            "absolute": s.l1_weight,
            "consistency": s.consistency_weight,
            "orthogonality": s.orthogonality_weight if s.has_decoders and s.orthogonality == "penalty" else 0.0,
            "perceptual": s.perceptual_weight if s.scheme == "residual" else 0.0,
            "adversarial": s.adversarial_weight if s.scheme == "residual" else 0.0,
        }
        self.balance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name, w in self.weights.items() if w and s.uncertainty_weighting}
        )
        self.perceptual = perceptual_loss(s.perceptual_features) if self.weights["perceptual"] else None
        self.discriminator = Discriminator() if self.weights["adversarial"] else None

    def terms(
        self, prediction: Prediction, low: Tensor, target: Tensor, comparison: Degradation | None = None
    ) -> dict[str, Tensor]:
        """Return the terms of nonzero weight, unweighted.

        Parameters
        ----------
        prediction : Prediction
        low : Tensor, (B, h, w)
            Measured slices.
        target : Tensor, (B, H, W)
            Ground truth.
        comparison : Degradation, optional
            Degradation applied to predictions before they are compared with `target`.
        """
        terms: dict[str, Tensor] = {}
        weights = self.weights
        image = prediction.image if comparison is None else comparison.degrade(prediction.image)
        if weights["squared"]:
            terms["squared"] = (image - target).square().mean()
        if weights["absolute"]:
            terms["absolute"] = (image - target).abs().mean()
        if weights["consistency"]:
            degraded = self.scheme[0].degradation(low.shape[1:]).degrade(prediction.raw)
            terms["consistency"] = (degraded - low).square().mean()
        if weights["orthogonality"] and prediction.U is not None and prediction.V is not None:
            terms["orthogonality"] = orthogonality_error(prediction.U) + orthogonality_error(prediction.V)
        if weights["perceptual"] and self.perceptual is not None:
            terms["perceptual"] = self.perceptual(image, target)
        if weights["adversarial"] and self.discriminator is not None:
            terms["adversarial"] = (1 - self.discriminator(image)).square().mean()
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of terms."""
        sums = [self.weights[name] * term for name, term in terms.items()]
        for k, name in enumerate(terms):
            if name in self.balance:
                sums[k] = torch.exp(-self.balance[name]) * sums[k] + self.balance[name]
        return torch.stack(sums).sum()

    def coefficients(self) -> dict[str, float]:
        """Return the present coefficient of each term."""
        learned = {name: float(torch.exp(-e.detach())) for name, e in self.balance.items()}
        return {name: weight * learned.get(name, 1.0) for name, weight in self.weights.items() if weight}


class Discriminator(nn.Module):
    """Patch discriminator with the least-squares objective of LSGAN: predicted patches 0, true patches 1.

    References
    ----------
    .. [1] P. Isola et al., "Image-to-image translation with conditional adversarial networks", CVPR 2017.
    .. [2] X. Mao et al., "Least squares generative adversarial networks", ICCV 2017.
    """

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((1, channels), (channels, 2 * channels)):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(2 * channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (B, 1, H/4, W/4) of the patches of images (B, H, W)."""
        scores: Tensor = self.layers(images[:, None])
        return scores

    def loss(self, predictions: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the discriminator itself."""
        true, false = self.forward(target), self.forward(predictions.detach())
        return (1 - true).square().mean() + false.square().mean()


def orthogonality_error(vectors: Tensor) -> Tensor:
    """Return the mean over slices of ``|U^T U - I|^2`` for each mode, of vectors (B, N, r)."""
    gram = vectors.transpose(1, 2) @ vectors
    off: Tensor = (gram - torch.eye(gram.shape[-1]).to(gram)).square().sum((1, 2))
    mean: Tensor = off.mean() / gram.shape[-1]
    return mean
