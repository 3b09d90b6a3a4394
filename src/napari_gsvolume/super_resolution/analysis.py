"""Analysis of trained super-resolution models: loss gradients, and contributions of the modes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..types import Float32Array
from .losses import Losses
from .model import SRModel
from .schemes import middle_slice


def loss_gradients(model: SRModel, low: ArrayLike, target: ArrayLike) -> dict[str, Float32Array]:
    """Return the gradient of each loss with respect to the pixels of the raw prediction.

    Parameters
    ----------
    model : SRModel
    low : array_like, (C, h, w)
        A slice and its neighbours as in `ValidationSet`, normalized.
    target : array_like, (H, W)
        Ground truth of the slice, normalized.

    Returns
    -------
    dict of ndarray of float32, (H, W)
        Gradients of the unweighted losses, by name: the terms of nonzero weight that depend on the image alone. (The
        orthogonality loss depends on the vectors, and the discriminator is not saved. The projection removes the
        measured part of a gradient.)

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.super_resolution import SRModel, TrainSRSettings
    >>> from napari_gsvolume.super_resolution.analysis import loss_gradients
    >>> from napari_gsvolume.super_resolution.schemes import build_scheme
    >>> model = SRModel(build_scheme(TrainSRSettings(channels=4, blocks=1)))
    >>> gradients = loss_gradients(model, np.zeros((3, 8, 8)), np.ones((16, 16)))
    >>> {name: gradient.shape for name, gradient in gradients.items()}
    {'squared': (16, 16), 'consistency': (16, 16)}
    """
    scheme = model.scheme.eval()
    measured, truth = (torch.as_tensor(np.asarray(a, dtype=np.float32))[None] for a in (low, target))
    with torch.no_grad():
        raw = scheme(measured).raw
    raw.requires_grad_()
    given = middle_slice(measured)
    losses = Losses(scheme)
    losses.weights["adversarial"] = 0.0
    terms = losses.terms(scheme.make_prediction(raw, given, raw), given, truth)
    names = list(terms)
    return {name: torch.autograd.grad(terms[name], raw, retain_graph=True)[0][0].numpy() for name in names}


def mode_contributions(model: SRModel, low: ArrayLike, target: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """Return the contribution of each mode to a prediction of scheme A.

    Parameters
    ----------
    model : SRModel
    low : array_like, (1, h, w)
        A slice, normalized.
    target : array_like, (H, W)
        Ground truth of the slice, normalized.

    Returns
    -------
    dict of ndarray, (r,)
        ``c``, the predicted amplitudes; ``values``, the singular values of the slice, scaled to the fine grid;
        ``error``, the mean squared error of the first 1, 2, ... modes together, before the projection.

    Raises
    ------
    InputError
        If the model is of scheme B, which predicts no modes.
    """
    if model.settings.scheme != "singular-vectors":
        raise InputError("Models of scheme B (residual) predict an image, not modes.")
    measured = torch.as_tensor(np.asarray(low, dtype=np.float32))[None]
    with torch.no_grad():
        prediction = model.scheme.eval()(measured)
    assert prediction.U is not None
    assert prediction.V is not None
    assert prediction.c is not None
    U, V, c = (t[0].double().numpy() for t in (prediction.U, prediction.V, prediction.c))
    truth = np.asarray(target, dtype=np.float64)
    values = torch.linalg.svdvals(measured[0, 0].double()).numpy()[: len(c)]
    image, errors = np.zeros_like(truth), []
    for k in range(len(c)):
        image += np.outer(c[k] * U[:, k], V[:, k])
        errors.append(np.square(image - truth).mean())
    scale = np.sqrt(truth.size / measured[0, 0].numel())
    return {"c": c, "values": scale * values, "error": np.array(errors)}
