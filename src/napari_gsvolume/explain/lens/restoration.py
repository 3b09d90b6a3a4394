"""Modes of the target that a super-resolution restores and loses, and modes that it invents.

Images are matrices: T the target, P the prediction, S the spline of the low-resolution image. A mode of T, s u v^T, has
the amplitude ``u^T X v / s`` in an image X: 1 in T itself, 0 if it is missing. That needs no SVD of X, so signs and
rotations of its vectors do not matter; modes of T of nearly equal values count together, for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ...errors import InputError
from ...super_resolution.bspline import upsample_bspline
from ...super_resolution.model import SRModel
from ...svd.decomposition import SliceSVD as Modes
from ...svd.decomposition import decompose
from ...types import Float64Array
from ..models.explained_model import ExplainedModel
from ..models.forward import find_tensor

Fate = Literal["kept", "restored", "lost", "worsened"]

NEAR_EQUAL = 0.02  # relative difference below which values count together
PRESENT = 0.5  # amplitude from which a mode is present in an image
FLOOR = 1e-3  # of the first value: weaker modes are left out of the table (not of energies)


@dataclass(frozen=True, eq=False)
class ImageLens:
    """Restoration of the modes of one image.

    Attributes
    ----------
    values, values_prediction, values_spline : ndarray, (r,)
        Singular values of target, prediction and spline.
    ratio : ndarray, (m,)
        Ratios of the values of the prediction to those of the target, for the m modes of the target above `FLOOR` of
        its first value.
    alignment_u, alignment_v : ndarray, (m,)
        Cosine of the largest principal angle between the spans of the left (right) vectors of target and prediction of
        the same number, those of nearly equal values together: 1 for equal vectors.
    amplitude, amplitude_spline : ndarray, (m,)
        Amplitude of each mode of the target in the prediction and in the spline.
    fates : tuple of str, (m,)
        Fate of each mode, present in an image from an amplitude of one half. ``kept``: in prediction and spline;
        ``restored``: in the prediction, not in the spline; ``lost``: in neither; ``worsened``: in the spline alone.
    invented : tuple of int
        Modes of the prediction, above `FLOOR` of the first value of the target, with an amplitude below one half in
        the target.
    beyond : float
        Energy (sum of squares) of the detail T - S, the target beyond the spline.
    E_restored, E_lost, E_invented : float
        Fractions of that energy. P - S is projected on each mode of T - S, of energy rho^2; with the coefficient c,
        clipped to 0 to 1, ``(1 - c)^2 rho^2`` is lost and the rest restored, which add up to 1. Invented is the part of
        P - S that restores nothing: in no mode of T - S, too much of one, or of the wrong sign; it may exceed 1.
    """

    values: Float64Array
    values_prediction: Float64Array
    values_spline: Float64Array
    ratio: Float64Array
    alignment_u: Float64Array
    alignment_v: Float64Array
    amplitude: Float64Array
    amplitude_spline: Float64Array
    fates: tuple[Fate, ...]
    invented: tuple[int, ...]
    beyond: float
    E_restored: float
    E_lost: float
    E_invented: float

    def of_fate(self, fate: Fate) -> tuple[int, ...]:
        """Return the numbers of the modes of the target with a fate."""
        return tuple(k for k, one in enumerate(self.fates) if one == fate)


@dataclass(frozen=True, eq=False)
class Lens:
    """Restoration of the modes of several images.

    Attributes
    ----------
    images : tuple of ImageLens
    label : str
        Source of the predictions: a layer, an epoch.
    """

    images: tuple[ImageLens, ...]
    label: str = ""

    @property
    def energies(self) -> dict[str, float]:
        """Fractions of the detail energy of all images together: ``restored``, ``lost``, ``invented``."""
        total = sum(one.beyond for one in self.images)
        names = ("restored", "lost", "invented")
        return {
            name: sum(getattr(one, f"E_{name}") * one.beyond for one in self.images) / total if total else 0.0
            for name in names
        }

    @property
    def amplitudes(self) -> Float64Array:
        """Mean amplitude of each mode over the images, (m,), for the modes that all images have."""
        shortest = min(len(one.amplitude) for one in self.images)
        return np.asarray(np.mean([one.amplitude[:shortest] for one in self.images], axis=0))

    @property
    def summary(self) -> str:
        """Result in one sentence."""
        e = self.energies
        counts = {f: np.mean([len(one.of_fate(f)) for one in self.images]) for f in ("kept", "restored", "lost")}
        invented = np.mean([len(one.invented) for one in self.images])
        return (
            (f"{self.label}: " if self.label else "")
            + f"of the detail energy beyond the spline {e['restored']:.1%} is restored, {e['lost']:.1%} lost, and "
            f"{e['invented']:.1%} of it invented; modes of an image on average: {counts['kept']:.1f} kept, "
            f"{counts['restored']:.1f} restored, {counts['lost']:.1f} lost, {invented:.1f} invented."
        )


def image_lens(target: ArrayLike, prediction: ArrayLike, base: ArrayLike) -> ImageLens:
    """Classify the modes of one image as kept, restored, lost or worsened by a prediction.

    Modes belong to this image: a restored mode is not one structure. A prediction can invent a plausible mode, which
    only the comparison with a target reveals. High modes of a noisy target are noise, which no prediction can restore.

    Parameters
    ----------
    target, prediction, base : array_like, (H, W)
        The base is the spline, or another baseline.

    Raises
    ------
    InputError
        If shapes differ, or an image is not finite or constant.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain import image_lens
    >>> target = np.diag([4.0, 3.0, 2.0])
    >>> image_lens(target, np.diag([4.0, 3.0, 0.0]), np.diag([4.0, 0.0, 0.0])).fates
    ('kept', 'restored', 'lost')
    """
    T, P, S = decompose(target), decompose(prediction), decompose(base)
    if not T.shape == P.shape == S.shape:
        raise InputError(f"Target, prediction and base have one shape; got {T.shape}, {P.shape} and {S.shape}.")
    full = {"T": np.asarray(target, float), "P": np.asarray(prediction, float), "S": np.asarray(base, float)}
    floor = FLOOR * T.values[0]
    m = int((T.values > floor).sum())
    groups = _groups(T.values[:m])
    amplitude, before = (_repeat_groups(_amplitudes(T, groups, full[name]), groups) for name in "PS")
    alignment_u, alignment_v = (
        _repeat_groups(np.array([_cosine(a[:, g], b[:, g]) for g in groups]), groups)
        for a, b in ((T.U, P.U), (T.V, P.V))
    )
    fates: tuple[Fate, ...] = tuple(
        ("kept" if was else "restored") if now else ("worsened" if was else "lost")
        for now, was in zip(amplitude >= PRESENT, before >= PRESENT, strict=True)
    )
    mine = _groups(P.values[P.values > floor])
    supported = _repeat_groups(_amplitudes(P, mine, full["T"]), mine)
    beyond, added = full["T"] - full["S"], full["P"] - full["S"]
    energy = float(np.square(beyond).sum())
    restored = lost = invented = 0.0
    if energy > 0:
        R = Modes(*_svd(beyond))
        every = _groups(R.values[R.values > 1e-12 * R.values[0]])
        c = np.clip(_amplitudes(R, every, added), 0, 1)
        squares = np.array([np.square(R.values[g]).sum() for g in every])
        lost = float(((1 - c) ** 2 * squares).sum() / squares.sum())
        restored = 1 - lost
        weights = _repeat_groups(c, every)
        r = len(weights)
        helpful = (R.U[:, :r] * (weights * R.values[:r])) @ R.V[:, :r].T
        invented = float(np.square(added - helpful).sum() / energy)
    return ImageLens(
        *(T.values, P.values, S.values, P.values[:m] / T.values[:m], alignment_u, alignment_v, amplitude, before),
        *(fates, tuple(map(int, np.flatnonzero(supported < PRESENT))), energy, restored, lost, invented),
    )


Predictor = SRModel | nn.Module | Callable[[Tensor], Any]


def sr_lens(
    model: Predictor, lows: ArrayLike | Tensor, targets: ArrayLike | Tensor, factors: Sequence[float] | None = None
) -> Lens:
    """Analyse the slices of a super-resolution mode by mode.

    Parameters
    ----------
    model : SRModel, nn.Module or callable
        Called with `lows` as a Tensor; returns super-resolved slices (B, H, W), or (B, 1, H, W), or an object with the
        attribute ``image``, as schemes do.
    lows : array_like or Tensor, (B, C, h, w)
        Normalized slices; the middle channel is the slice itself.
    targets : array_like or Tensor, (B, H, W)
        Ground truth.
    factors : (float, float), optional
        Upsampling factors of the spline; H / h and W / w if omitted.

    Raises
    ------
    InputError
        If shapes do not match, or as in `image_lens`.
    """
    low, truth, base = check_slices(lows, targets, factors)
    return compute_lens(truth, predict(model, low, truth), base)


def compute_lens(truth: Float64Array, predictions: Float64Array, base: Float64Array, label: str = "") -> Lens:
    """Return the lens on predictions, all (B, H, W)."""
    return Lens(tuple(image_lens(t, p, s) for t, p, s in zip(truth, predictions, base, strict=True)), label)


def check_slices(
    lows: ArrayLike | Tensor, targets: ArrayLike | Tensor, factors: Sequence[float] | None
) -> tuple[Tensor, Float64Array, Float64Array]:
    """Return slices (B, C, h, w), targets (B, H, W) and splines."""
    low, target = (torch.as_tensor(np.asarray(a, dtype=np.float32)) for a in (lows, targets))
    if low.ndim != 4 or target.ndim != 3 or len(low) != len(target) or len(low) == 0:
        raise InputError(
            f"Slices are (B, C, h, w) and targets (B, H, W); got {tuple(low.shape)} and {tuple(target.shape)}."
        )
    middle = low[:, low.shape[1] // 2]
    if factors is None:
        factors = [n / m for n, m in zip(target.shape[1:], low.shape[2:], strict=True)]
    base = upsample_bspline(middle.double(), factors)
    if base.shape != target.shape:
        raise InputError(f"Super-resolved slices are {tuple(base.shape[1:])}, and targets {tuple(target.shape[1:])}.")
    return low, target.double().numpy(), base.numpy()


def predict(model: Predictor, low: Tensor, truth: Float64Array) -> Float64Array:
    """Return the prediction of a model for slices (B, C, h, w), in the shape of the truth."""
    if isinstance(model, (SRModel, nn.Module)):
        explained = ExplainedModel.of(model)
        with explained.evaluation(), torch.no_grad():
            given = explained.model(low)
    else:
        with torch.no_grad():
            given = model(low)
    image = given.image if hasattr(given, "image") else find_tensor(given, "The model")
    image = image[:, 0] if image.ndim == 4 and image.shape[1] == 1 else image
    if tuple(image.shape) != truth.shape:
        raise InputError(f"The prediction has the shape {tuple(image.shape)}, and the targets have {truth.shape}.")
    return np.asarray(image.detach().double().cpu().numpy())


def _svd(matrix: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    U, values, Vh = np.linalg.svd(matrix, full_matrices=False)
    return U, values, Vh.T


def _groups(values: Float64Array) -> list[slice]:
    """Return groups of modes of nearly equal values: within `NEAR_EQUAL` of the first of the group."""
    groups, first = [], 0
    for k in range(1, len(values) + 1):
        if k == len(values) or values[k] < (1 - NEAR_EQUAL) * values[first]:
            groups.append(slice(first, k))
            first = k
    return groups


def _amplitudes(modes: Modes, groups: list[slice], image: Float64Array) -> Float64Array:
    """Return the amplitude of each group of modes in an image, (groups,): <X, G> / |G|^2."""
    along = np.einsum("yk,yx,xk->k", modes.U, image, modes.V, optimize=True)
    return np.array([(along[g] @ modes.values[g]) / (modes.values[g] @ modes.values[g]) for g in groups])


def _repeat_groups(values: Float64Array, groups: list[slice]) -> Float64Array:
    """Return the value of its group for each mode."""
    return np.repeat(values, [g.stop - g.start for g in groups]) if groups else np.empty(0)


def _cosine(A: Float64Array, B: Float64Array) -> float:
    """Return the cosine of the largest principal angle between the spans of orthonormal columns."""
    return float(min(1.0, np.linalg.svd(A.T @ B, compute_uv=False).min()))
