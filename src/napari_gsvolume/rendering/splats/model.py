"""Gaussians with opacity and colour, as 3D Gaussian Splatting has them, and their pictures on any device.

B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
ACM Transactions on Graphics 42 (4), 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from ...devices import available_device, gsplat_problem
from ...errors import InputError
from ..cameras import Cameras
from . import reference, spherical_harmonics
from .projection import BLUR, NEAR, project
from .rasterizer import rasterise

Backend = Literal["auto", "cpu", "reference", "gsplat"]
Colour = tuple[float, float, float]
_BLACK = (0.0, 0.0, 0.0)
_ALL_BUT_SH = ("means", "log_scales", "quaternions", "logits")


class View(NamedTuple):
    """What one camera sees, and what densification asks for."""

    image: Tensor
    """(H, W, 3)."""
    alpha: Tensor
    """How far the Gaussians cover each pixel, (H, W)."""
    means: Tensor
    """Where the Gaussians are in the image, pixels: (N, 2), or (1, N, 2) of gsplat. They retain their gradient."""
    visible: Tensor
    """Which Gaussians reach the image, (N,), bool."""

    def pulls(self) -> Tensor:
        """Return the lengths of the gradients by the places in the image, ``(N,)``, after the backward pass."""
        if self.means.grad is None:
            raise InputError("There are no gradients by the places in the image before the backward pass.")
        pulls: Tensor = self.means.grad.reshape(-1, 2).norm(dim=1)
        return pulls


@dataclass(frozen=True, eq=False)
class Splats:
    """N Gaussians in 3D, with opacity, and a colour that depends on the direction they are seen from.

    Attributes
    ----------
    means : Tensor, (N, 3)
        mm, (x, y, z), in the world of the cameras.
    log_scales : Tensor, (N, 3)
        Natural logarithms of the standard deviations along the principal axes.
    quaternions : Tensor, (N, 4)
        (w, x, y, z), of any length but 0; the principal axes are the columns of the rotation.
    logits : Tensor, (N,)
        Of the opacities.
    sh : Tensor, (N, K, 3)
        Coefficients of spherical harmonics, K = (degree + 1)^2, degree 0 to 3, for red, green and blue
        (`napari_gsvolume.rendering.splats.spherical_harmonics`).

    Raises
    ------
    ValueError
        If shapes do not fit, or a tensor holds NaN or infinite numbers.
    """

    means: Tensor
    log_scales: Tensor
    quaternions: Tensor
    logits: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        n, K = len(self.means), self.sh.shape[1] if self.sh.ndim == 3 else 0
        expected = {"means": (n, 3), "log_scales": (n, 3), "quaternions": (n, 4), "logits": (n,), "sh": (n, K, 3)}
        for name, shape in expected.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise InputError(f"The {name} of {n} splats have the shape {shape}; got {found}.")
            if not getattr(self, name).detach().isfinite().all():
                raise InputError(f"The {name} of splats hold NaN or infinite numbers.")
        if K not in (1, 4, 9, 16):
            raise InputError(f"Splats have 1, 4, 9 or 16 coefficients of spherical harmonics; got {K}.")

    def __len__(self) -> int:
        return len(self.means)

    def to(self, device: torch.device | str) -> Splats:
        """Return the splats on a device, as numbers without gradients."""
        parts = self.means, self.log_scales, self.quaternions, self.logits, self.sh
        return Splats(*(tensor.detach().to(device) for tensor in parts))

    @property
    def degree(self) -> int:
        """Highest degree of the spherical spherical_harmonics."""
        return math.isqrt(self.sh.shape[1]) - 1

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the Gaussians of all parts as one set, which is drawn sorted by depth as a whole.

        Parameters
        ----------
        parts : sequence of Splats
            At least one. Harmonics that a part lacks, beside one of a higher degree, are zero.

        Raises
        ------
        ValueError
            If there is none.
        """
        if not parts:
            raise InputError("There are no splats to join.")
        most = max(part.sh.shape[1] for part in parts)
        sh = [torch.nn.functional.pad(part.sh, (0, 0, 0, most - part.sh.shape[1])) for part in parts]
        others = {name: torch.cat([getattr(part, name) for part in parts]) for name in _ALL_BUT_SH}
        return cls(**others, sh=torch.cat(sh))

    def colours(self, camera: Cameras, sh_degree: int | None = None) -> Tensor:
        """Return the colours ``(N, 3)`` that one camera sees, at least 0, up to a degree of the spherical_harmonics."""
        degree = self.degree if sh_degree is None else min(sh_degree, self.degree)
        if camera.orthographic:
            rays = torch.as_tensor(camera.directions).to(self.means)  # (1, 3)
        else:
            rays = self.means - torch.as_tensor(camera.positions).to(self.means)
        return spherical_harmonics.colours(self.sh, rays, degree)

    def render(
        self,
        cameras: Cameras,
        background: Sequence[float] = _BLACK,
        sh_degree: int | None = None,
        *,
        backend: Backend = "auto",
    ) -> Tensor:
        """Return what cameras see, ``(V, H, W, 3)``, differentiable with respect to all tensors.

        Parameters
        ----------
        cameras : Cameras
        background : (float, float, float)
        sh_degree : int, optional
            Leaves out harmonics of a higher degree; all count by default.
        backend : "auto", "cpu", "reference" or "gsplat"
            "cpu" is `napari_gsvolume.rendering.splats.rasterizer`, in float32, "reference" is
            `napari_gsvolume.rendering.splats.reference` on any device and in the precision of the
            tensors, "gsplat" the package of that name, on an NVIDIA GPU. "auto" takes gsplat for tensors on a GPU.

        Raises
        ------
        ValueError
            If the backend does not exist, cannot be used, or is for another device.
        """
        return torch.stack([self.view(camera, background, sh_degree, backend=backend).image for camera in cameras])

    def view(
        self,
        camera: Cameras,
        background: Sequence[float] = _BLACK,
        sh_degree: int | None = None,
        *,
        backend: Backend = "auto",
    ) -> View:
        """Return the image of one camera, with its cover, places and visibility; see `render`."""
        if len(camera) != 1:
            raise InputError(f"A view is that of one camera; got {len(camera)}.")
        if len(background) != 3:
            raise InputError(f"A background has red, green and blue; got {len(background)} numbers.")
        ground = (float(background[0]), float(background[1]), float(background[2]))
        draw = _DRAW[_usable(backend, self.means.device)]
        opacities = self.logits.contiguous().sigmoid()  # of numbers that lie apart, torch rounds it in another way
        view = draw(self, self.colours(camera, sh_degree), opacities, camera, ground)
        if view.means.requires_grad:
            view.means.retain_grad()
        return view


def drawing_device(wanted: str) -> str:
    """Return the torch device to draw on: an NVIDIA GPU where gsplat can be used, else the CPU.

    Parameters
    ----------
    wanted : str
        "auto", "cpu", "cuda", "cuda:1" and so on.

    Raises
    ------
    ValueError
        If a GPU is wanted and cannot be used; the sentence says why.
    """
    if wanted == "cpu" or (wanted == "auto" and gsplat_problem()):
        return "cpu"
    device = available_device(wanted)
    if problem := gsplat_problem():
        raise InputError(problem)
    return device


def _usable(backend: Backend, device: torch.device) -> str:
    """Return which backend draws tensors on a device; raise ValueError if it cannot."""
    if backend == "auto":
        backend = "gsplat" if device.type == "cuda" else "cpu"
    if backend not in _DRAW:
        raise InputError(f"The backend is 'auto', 'cpu', 'reference' or 'gsplat'; got {backend!r}.")
    if backend == "gsplat" and (problem := gsplat_problem()):
        raise InputError(problem)
    if device.type != {"cpu": "cpu", "gsplat": "cuda"}.get(backend, device.type):
        raise InputError(f"The backend {backend!r} does not draw splats that are on the device {str(device)!r}.")
    return backend


def _by_numba(splats: Splats, colours: Tensor, opacities: Tensor, camera: Cameras, background: Colour) -> View:
    seen = project(splats.means.double(), splats.log_scales.double(), splats.quaternions.double(), opacities, camera)
    image, alpha = rasterise(seen, colours, opacities, camera.size, background)
    return View(image, alpha, seen.means, seen.visible)


def _densely(splats: Splats, colours: Tensor, opacities: Tensor, camera: Cameras, background: Colour) -> View:
    means, covariances, depths = reference.project(splats.means, splats.log_scales, splats.quaternions, camera)
    image, alpha = reference.rasterise(means, covariances, depths, colours, opacities, camera.size, background)
    visible = project(splats.means, splats.log_scales, splats.quaternions, opacities, camera).visible
    return View(image, alpha, means, visible)


def _by_gsplat(splats: Splats, colours: Tensor, opacities: Tensor, camera: Cameras, background: Colour) -> View:
    from gsplat import rasterization

    # Colours (1, N, 3): by gsplat's own harmonics, orthographic cameras too would see them from one point.
    tensors = (splats.means, splats.quaternions, splats.log_scales.exp(), opacities, colours[None])
    like = torch.empty(0, device=splats.means.device)
    image, alpha, rest = rasterization(
        *(t.float() for t in tensors),
        torch.as_tensor(camera.matrices).to(like),
        torch.as_tensor(camera.intrinsics).to(like),
        *camera.size[::-1],
        near_plane=NEAR,
        eps2d=BLUR,
        packed=False,
        backgrounds=torch.tensor([background]).to(like),
        rasterize_mode="classic",
        camera_model="ortho" if camera.orthographic else "pinhole",
    )
    return View(image[0], alpha[0, :, :, 0], rest["means2d"], (rest["radii"][0] > 0).all(-1))


_DRAW: dict[str, Callable[[Splats, Tensor, Tensor, Cameras, Colour], View]] = {
    "cpu": _by_numba,
    "reference": _densely,
    "gsplat": _by_gsplat,
}
