"""What a learned super-resolution does: where each loss pulls, and what each mode adds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..types import Float32Array
from .losses import Losses
from .model import SRModel
from .schemes import middle


def loss_gradients(model: SRModel, low: ArrayLike, target: ArrayLike) -> dict[str, Float32Array]:
    """Return the gradient of each loss by the pixels of the raw prediction: where it pulls, and which way.

    Parameters
    ----------
    model : SRModel
    low : array_like, (C, h, w)
        A slice and its neighbours as `HeldOut` has them, normalised.
    target : array_like, (H, W)
        What it should become.

    Returns
    -------
    dict of ndarray of float32, (H, W)
        By the name of the loss, unweighted: the terms that depend on the image alone and have a weight. (That of
        orthogonality depends on vectors, and a discriminator is not kept. The projection takes the part away that was
        measured.)
    """
    scheme = model.scheme.eval()
    measured, truth = (torch.as_tensor(np.asarray(a, dtype=np.float32))[None] for a in (low, target))
    with torch.no_grad():
        raw = scheme(measured).raw
    raw.requires_grad_()
    given = middle(measured)
    losses = Losses(scheme)
    losses.weights["adversarial"] = 0.0
    terms = losses.terms(scheme.predicted(raw, given, raw), given, truth)
    names = list(terms)
    return {name: torch.autograd.grad(terms[name], raw, retain_graph=True)[0][0].numpy() for name in names}


def mode_contributions(model: SRModel, low: ArrayLike, target: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Return what each mode of a prediction of scheme a adds.

    Parameters
    ----------
    model : SRModel
    low : array_like, (1, h, w)
        A slice, normalised.
    target : array_like, (H, W)

    Returns
    -------
    dict of ndarray, (r,)
        ``c``, the predicted amplitudes; ``values``, the singular values of the slice, scaled to the finer grid;
        ``error``, the mean squared error of the first 1, 2, ... modes together, before the projection.

    Raises
    ------
    ValueError
        If the model is of scheme b, which predicts no modes.
    """
    if model.settings.scheme != "a":
        raise InputError("Scheme b predicts an image, not modes; those of its result are its singular values.")
    measured = torch.as_tensor(np.asarray(low, dtype=np.float32))[None]
    with torch.no_grad():
        made = model.scheme.eval()(measured)
    assert made.U is not None
    assert made.V is not None
    assert made.c is not None
    U, V, c = (t[0].double().numpy() for t in (made.U, made.V, made.c))
    truth = np.asarray(target, dtype=np.float64)
    values = torch.linalg.svdvals(measured[0, 0].double()).numpy()[: len(c)]
    image, errors = np.zeros_like(truth), []
    for k in range(len(c)):
        image += np.outer(c[k] * U[:, k], V[:, k])
        errors.append(np.square(image - truth).mean())
    scale = np.sqrt(truth.size / measured[0, 0].numel())
    return {"c": c, "values": scale * values, "error": np.array(errors)}
