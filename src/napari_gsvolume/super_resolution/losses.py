"""What a super-resolution is trained to make small."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .degradation import Degradation
from .perceptual import perceptual_loss
from .schemes import Prediction, Scheme


class Losses(nn.Module):
    """The terms of the loss, and their weights, fixed or learned.

    Learned, the sum is ``sum_i exp(-e_i) lambda_i L_i + e_i`` with an e_i for each (Kendall, Gal & Cipolla, CVPR 2018).

    Raises
    ------
    ValueError, OSError
        If a perceptual loss is asked for that cannot be had.
    """

    def __init__(self, of: Scheme) -> None:
        super().__init__()
        s = of.settings
        self.scheme = (of,)  # in a tuple, so that its weights are not taken for ours
        self.weights = {
            "squared": s.lambda_squared,
            "absolute": s.lambda_absolute,
            "consistency": s.lambda_consistency,
            "orthogonality": s.lambda_orthogonality if s.decodes and s.orthogonality == "penalty" else 0.0,
            "perceptual": s.lambda_perceptual if s.scheme == "b" else 0.0,
            "adversarial": s.lambda_adversarial if s.scheme == "b" else 0.0,
        }
        self.balance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name, w in self.weights.items() if w and s.learn_weights}
        )
        self.perceptual = perceptual_loss(s.perceptual) if self.weights["perceptual"] else None
        self.discriminator = Discriminator() if self.weights["adversarial"] else None

    def terms(
        self, made: Prediction, low: Tensor, target: Tensor, seen: Degradation | None = None
    ) -> dict[str, Tensor]:
        """Return each term that has a weight, unweighted.

        Parameters
        ----------
        made : Prediction
        low : Tensor, (B, h, w)
            What was measured.
        target : Tensor, (B, H, W)
        seen : Degradation, optional
            What images have to go through before they are compared with `target`.
        """
        terms: dict[str, Tensor] = {}
        weights, image = self.weights, made.image if seen is None else seen.degrade(made.image)
        if weights["squared"]:
            terms["squared"] = (image - target).square().mean()
        if weights["absolute"]:
            terms["absolute"] = (image - target).abs().mean()
        if weights["consistency"]:
            again = self.scheme[0].degradation(low.shape[1:]).degrade(made.raw)
            terms["consistency"] = (again - low).square().mean()
        if weights["orthogonality"] and made.U is not None and made.V is not None:
            terms["orthogonality"] = departure(made.U) + departure(made.V)
        if weights["perceptual"] and self.perceptual is not None:
            terms["perceptual"] = self.perceptual(image, target)
        if weights["adversarial"] and self.discriminator is not None:
            terms["adversarial"] = (1 - self.discriminator(image)).square().mean()
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum."""
        sums = [self.weights[name] * term for name, term in terms.items()]
        for k, name in enumerate(terms):
            if name in self.balance:
                sums[k] = torch.exp(-self.balance[name]) * sums[k] + self.balance[name]
        return torch.stack(sums).sum()

    def coefficients(self) -> dict[str, float]:
        """Return what each term is multiplied with now."""
        learned = {name: float(torch.exp(-e.detach())) for name, e in self.balance.items()}
        return {name: weight * learned.get(name, 1.0) for name, weight in self.weights.items() if weight}


class Discriminator(nn.Module):
    """Tells parts of predictions (0) from true ones (1), by least squares (PatchGAN of Isola et al., CVPR 2017)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((1, channels), (channels, 2 * channels)):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(2 * channels, 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return a verdict (B, 1, H/4, W/4) for the parts of images (B, H, W)."""
        verdict: Tensor = self.layers(images[:, None])
        return verdict

    def loss(self, made: Tensor, target: Tensor) -> Tensor:
        """Return what the discriminator itself makes small."""
        true, false = self.forward(target), self.forward(made.detach())
        return (1 - true).square().mean() + false.square().mean()


def departure(vectors: Tensor) -> Tensor:
    """Return the mean over slices of ``|U^T U - I|^2`` for each mode, of vectors (B, N, r)."""
    gram = vectors.transpose(1, 2) @ vectors
    off: Tensor = (gram - torch.eye(gram.shape[-1]).to(gram)).square().sum((1, 2))
    mean: Tensor = off.mean() / gram.shape[-1]
    return mean
