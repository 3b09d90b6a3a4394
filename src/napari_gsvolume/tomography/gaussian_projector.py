"""Analytic X-ray projector: line integrals of a sum of Gaussians in closed form.

Projected along rays of direction n (unit length, in mm), a 3D Gaussian is a 2D Gaussian. With J the
derivative of pixel coordinates by index coordinates and S the covariance::

    mean  pi(mu),    covariance  J S J^T,    weight  w (2 pi / n^T P n)^(1/2)

n in index units in the last. For parallel beams this is exact, for fans and cones the local affine approximation at the
mean (Zwicker et al. 2001). A whitened step ``(omega, a, B)`` (see `napari_gsvolume.operators.gaussian_sum`) changes
them by::

    J W^-T a,    J W^-T B W^-1 J^T,    (2 pi / n^T P n)^(1/2) (omega + w (n^T W B W^T n) / (2 n^T P n))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import gather, splat
from ..operators.gaussian_sum import Gaussians, multiplicity, symmetric, upper
from .scan import Scan


class _Footprints(NamedTuple):
    """Footprints of N Gaussians on the detector of one view."""

    means: Tensor  # (N, 2), pixels in array order (v, u)
    factors: Tensor  # (N, 2, 2)
    gain: Tensor  # (N,): 2D over 3D weight
    flat: Tensor  # J W^-T, (N, 2, 3)
    along: Tensor  # W^T n / |W^T n|, (N, 3)


class GaussianProjector:
    """Forward operator from Gaussians to the projections of a scan, with jvp and vjp.

    Parameters
    ----------
    scan : Scan
        Acquisition geometry.
    device : torch.device
        Device of the Gaussians.

    References
    ----------
    .. [1] M. Zwicker, H. Pfister, J. van Baar and M. Gross, "EWA volume splatting", IEEE Visualization, 29-36, 2001.
    """

    def __init__(self, scan: Scan, device: torch.device | str = "cpu") -> None:
        self.scan = scan
        self.shape = scan.image_shape[1:]

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.float64, device=device)

        self._voxel = tensor(scan.voxel_size)
        self._middle = (tensor(scan.shape) - 1) / 2
        self._origins, self._inverse = tensor(scan.origins), torch.linalg.inv(tensor(scan.frames))
        self._directions, self._v = tensor(scan.sources), tensor(scan.v)

    def predict(self, gaussians: Gaussians, views: range | None = None) -> Tensor:
        """Return the line integrals, intensity times mm, ``(K, V, U)`` float32."""
        return self._views(
            gaussians,
            views,
            lambda view: splat(view.means, view.factors, _constant(gaussians.weights * view.gain), self.shape),
        )

    def jvp(self, gaussians: Gaussians, step: Tensor) -> Tensor:
        """Return J step: how every pixel changes with a whitened step ``(N, K)``, ``(K, V, U)``."""
        B = symmetric(step[:, 4:], 3)

        def one(view: _Footprints) -> Tensor:
            P = view.factors @ view.factors.mT  # 2D precision
            weight = gaussians.weights * view.gain
            shift = (view.flat @ step[:, 1:4, None])[:, :, 0]
            growth = P @ (view.flat @ B @ view.flat.mT) @ P
            stretch = _quadratic_form(B, view.along) / 2
            constant = view.gain * (step[:, 0] + gaussians.weights * stretch)
            linear = weight[:, None] * (P @ shift[:, :, None])[:, :, 0]
            quadratic = upper(growth) * (weight[:, None] / 2 * multiplicity(2, growth))
            return splat(view.means, view.factors, torch.cat([constant[:, None], linear, quadratic], 1), self.shape)

        return self._views(gaussians, None, one)

    def vjp(self, gaussians: Gaussians, images: Tensor) -> Tensor:
        """Return J^T images, ``(N, K)``."""
        total = torch.zeros(len(gaussians.weights), 10, device=images.device)
        for k, image in enumerate(images):
            view = self._project(gaussians, k)
            P = view.factors @ view.factors.mT
            weight = (gaussians.weights * view.gain)[:, None]
            moments = gather(view.means, view.factors, image)
            a = view.flat.mT @ (P @ moments[:, 1:3, None]) * weight[:, :, None]
            M = view.flat.mT @ (P @ symmetric(moments[:, 3:], 2) @ P) @ view.flat * (weight[:, :, None] / 2)
            M = M + view.along[:, :, None] * view.along[:, None] * (weight * moments[:, :1] / 2)[:, :, None]
            total[:, 0] += view.gain * moments[:, 0]
            total[:, 1:4] += a[:, :, 0]
            total[:, 4:] += upper(M) * multiplicity(3, M)
        return total

    def _views(self, gaussians: Gaussians, views: range | None, image: Callable[[_Footprints], Tensor]) -> Tensor:
        chosen = range(len(self.scan)) if views is None else views
        out = torch.empty(len(chosen), *self.shape, device=gaussians.weights.device)
        for place, k in enumerate(chosen):
            out[place] = image(self._project(gaussians, k))
        return out

    def _project(self, gaussians: Gaussians, view: int) -> _Footprints:
        """Return the footprints of the Gaussians in a view; float64 keeps positions far from the origin exact."""
        W = gaussians.factors.double()
        x = (gaussians.means.double() - self._middle) * self._voxel  # mm
        G = self._inverse[view]
        y = (x - self._origins[view]) @ G.T  # (N, 3)
        u, v = y[:, 0], y[:, 1]
        J = G[:2].expand(len(x), 2, 3)
        if self.scan.beam == "parallel":
            n = self._directions[view].expand_as(x)
        else:
            n = x - self._origins[view]
            depth = y[:, 2, None]  # 1 in the detector plane
            u = u / depth[:, 0]
            J = torch.stack([(G[0] - u[:, None] * G[2]) / depth, J[:, 1]], 1)
            if self.scan.beam == "fan":
                n = n - v[:, None] * self._v[view]
            else:
                v = v / depth[:, 0]
                J = torch.stack([J[:, 0], (G[1] - v[:, None] * G[2]) / depth], 1)
        n = n / n.norm(dim=1, keepdim=True) / self._voxel  # voxels per mm
        along = (W.mT @ n[:, :, None])[:, :, 0]
        thickness = along.norm(dim=1)  # (n^T P n)^(1/2)
        # J with respect to index coordinates, rows in array order (v, u).
        flat = (J.flip(1) * self._voxel) @ torch.linalg.inv(W).mT
        root = torch.linalg.cholesky(flat @ flat.mT)
        factors = torch.linalg.inv(root).mT
        middle = torch.tensor([(n - 1) / 2 for n in self.shape], dtype=torch.float64).to(x)
        means = torch.stack([v, u], 1) + middle
        gain = math.sqrt(2 * math.pi) / thickness
        return _Footprints(*(t.float() for t in (means, factors, gain, flat, along / thickness[:, None])))


def _constant(weights: Tensor) -> Tensor:
    return torch.nn.functional.pad(weights[:, None], (0, 5))


def _quadratic_form(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Return v^T M v of each row."""
    return (vectors[:, None] @ matrices @ vectors[:, :, None])[:, 0, 0]
