"""Gaussian splats: 3D Gaussians with opacity and view-dependent colour, and their rendering on any device.

References
----------
B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering", ACM
Transactions on Graphics 42 (4), 2023.
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
from .projection import BLUR, NEAR_PLANE, project
from .rasterizer import rasterize

Backend = Literal["auto", "cpu", "reference", "gsplat"]
Color = tuple[float, float, float]
_BLACK = (0.0, 0.0, 0.0)
_WITHOUT_SH = ("means", "log_scales", "quaternions", "opacity_logits")


class RenderedView(NamedTuple):
    """Rendered image of one camera, with the quantities that densification needs.

    Attributes
    ----------
    image : Tensor, (H, W, 3)
        Colours.
    alpha : Tensor, (H, W)
        Accumulated opacity.
    means : Tensor, (N, 2), or (1, N, 2) from gsplat
        Projected centres in pixels; they retain their gradient.
    visible : Tensor, (N,), bool
        Gaussians that contribute to the image.
    """

    image: Tensor
    alpha: Tensor
    means: Tensor
    visible: Tensor

    def positional_gradients(self) -> Tensor:
        """Return the norms of the gradients by the projected centres, ``(N,)``, after the backward pass."""
        if self.means.grad is None:
            raise InputError("Positional gradients do not exist before the backward pass.")
        norms: Tensor = self.means.grad.reshape(-1, 2).norm(dim=1)
        return norms


@dataclass(frozen=True, eq=False)
class Splats:
    """N Gaussian splats: 3D Gaussians with opacity and view-dependent colour.

    Attributes
    ----------
    means : Tensor, (N, 3)
        Centres (x, y, z) in the world coordinates of the cameras, mm.
    log_scales : Tensor, (N, 3)
        Natural logarithms of the standard deviations (mm) along the principal axes.
    quaternions : Tensor, (N, 4)
        Rotations (w, x, y, z), of any nonzero length; the columns of the matrix are the principal axes.
    opacity_logits : Tensor, (N,)
        Logits of the opacities: opacity = sigmoid(logit).
    sh : Tensor, (N, K, 3)
        Spherical harmonics (SH) coefficients of red, green and blue, K = (degree + 1)^2, degree 0 to 3.

    Raises
    ------
    InputError
        If shapes do not match, or a tensor contains NaN or infinite numbers.

    See Also
    --------
    train_splats : splats from a volume
    read_splats, write_splats : PLY files

    References
    ----------
    B. Kerbl, G. Kopanas, T. Leimkuehler, G. Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field Rendering",
    ACM Transactions on Graphics 42 (4), 2023.

    Examples
    --------
    One opaque white splat with a standard deviation of 5 mm, seen from two sides:

    >>> import torch
    >>> from napari_gsvolume.rendering import Splats, orbit_cameras, turntable_directions
    >>> logit, white = torch.tensor([4.0]), torch.full((1, 1, 3), 0.5 / 0.2820948)
    >>> splats = Splats(torch.zeros(1, 3), torch.full((1, 3), 5.0).log(), torch.tensor([[1.0, 0, 0, 0]]), logit, white)
    >>> images = splats.render(orbit_cameras(turntable_directions(2), radius=20.0, image_size=(32, 32)))
    >>> images.shape, bool(images[0, 16, 16, 0] > 0.9)
    (torch.Size([2, 32, 32, 3]), True)
    """

    means: Tensor
    log_scales: Tensor
    quaternions: Tensor
    opacity_logits: Tensor
    sh: Tensor

    def __post_init__(self) -> None:
        n, K = len(self.means), self.sh.shape[1] if self.sh.ndim == 3 else 0
        expected = {
            "means": (n, 3),
            "log_scales": (n, 3),
            "quaternions": (n, 4),
            "opacity_logits": (n,),
            "sh": (n, K, 3),
        }
        for name, shape in expected.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise InputError(f"The {name} of {n} splats have to be of shape {shape}; got {found}.")
            if not getattr(self, name).detach().isfinite().all():
                raise InputError(f"The {name} of splats must not contain NaN or infinite numbers.")
        if K not in (1, 4, 9, 16):
            raise InputError(f"Splats have 1, 4, 9 or 16 coefficients of spherical harmonics per colour; got {K}.")

    def __len__(self) -> int:
        return len(self.means)

    def to(self, device: torch.device | str) -> Splats:
        """Return the splats on a device, detached from gradients."""
        parts = self.means, self.log_scales, self.quaternions, self.opacity_logits, self.sh
        return Splats(*(tensor.detach().to(device) for tensor in parts))

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics (SH), 0 to 3."""
        return math.isqrt(self.sh.shape[1]) - 1

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the Gaussians of all parts as one set, which is sorted by depth as a whole when it is rendered.

        Parameters
        ----------
        parts : sequence of Splats
            At least one; missing coefficients of a lower SH degree are filled with zeros.

        Raises
        ------
        InputError
            If the sequence is empty.
        """
        if not parts:
            raise InputError("There are no splats to concatenate.")
        max_coefficients = max(part.sh.shape[1] for part in parts)
        sh = [torch.nn.functional.pad(part.sh, (0, 0, 0, max_coefficients - part.sh.shape[1])) for part in parts]
        others = {name: torch.cat([getattr(part, name) for part in parts]) for name in _WITHOUT_SH}
        return cls(**others, sh=torch.cat(sh))

    def view_colors(self, camera: Cameras, sh_degree: int | None = None) -> Tensor:
        """Return the colours ``(N, 3)`` in the view of one camera, at least 0, up to an SH degree."""
        degree = self.sh_degree if sh_degree is None else min(sh_degree, self.sh_degree)
        if camera.orthographic:
            rays = torch.as_tensor(camera.directions).to(self.means)  # (1, 3)
        else:
            rays = self.means - torch.as_tensor(camera.positions).to(self.means)
        return spherical_harmonics.evaluate_colors(self.sh, rays, degree)

    def render(
        self,
        cameras: Cameras,
        background: Sequence[float] = _BLACK,
        sh_degree: int | None = None,
        *,
        backend: Backend = "auto",
    ) -> Tensor:
        """Render the images of all cameras, ``(V, H, W, 3)``, differentiable with respect to all tensors.

        Parameters
        ----------
        cameras : Cameras
            V cameras in the OpenCV convention, world coordinates in mm.
        background : (float, float, float)
            Background colour (red, green, blue), 0 to 1.
        sh_degree : int, optional
            Maximum SH degree to use; by default all coefficients.
        backend : "auto", "cpu", "reference" or "gsplat"
            "cpu": tile rasterizer in float32 (`napari_gsvolume.rendering.splats.rasterizer`). "reference": direct
            evaluation on any device, in the precision of the tensors. "gsplat": the gsplat package, on an NVIDIA GPU.
            "auto": gsplat for tensors on a GPU, otherwise "cpu".

        Raises
        ------
        InputError
            If the backend does not exist, cannot be used, or does not support the device.
        """
        return torch.stack(
            [self.render_view(camera, background, sh_degree, backend=backend).image for camera in cameras]
        )

    def render_view(
        self,
        camera: Cameras,
        background: Sequence[float] = _BLACK,
        sh_degree: int | None = None,
        *,
        backend: Backend = "auto",
    ) -> RenderedView:
        """Return the image of one camera with alpha, projected centres and visibility; parameters as of `render`."""
        if len(camera) != 1:
            raise InputError(f"render_view takes one camera; got {len(camera)}.")
        if len(background) != 3:
            raise InputError(f"A background colour has red, green and blue; got {len(background)} numbers.")
        background_color = (float(background[0]), float(background[1]), float(background[2]))
        render = _BACKENDS[_select_backend(backend, self.means.device)]
        opacities = self.opacity_logits.contiguous().sigmoid()  # torch rounds strided numbers in another way
        view = render(self, self.view_colors(camera, sh_degree), opacities, camera, background_color)
        if view.means.requires_grad:
            view.means.retain_grad()
        return view


def select_render_device(requested: str) -> str:
    """Return the torch device for rendering splats: an NVIDIA GPU where gsplat can be used, else the CPU.

    Parameters
    ----------
    requested : str
        "auto", "cpu", "cuda", "cuda:1" and so on.

    Raises
    ------
    InputError
        If a GPU is requested and cannot be used; the message gives the reason.
    """
    if requested == "cpu" or (requested == "auto" and gsplat_problem()):
        return "cpu"
    device = available_device(requested)
    if problem := gsplat_problem():
        raise InputError(problem)
    return device


def _select_backend(backend: Backend, device: torch.device) -> str:
    """Return the backend for tensors on a device; raise InputError if it cannot be used there."""
    if backend == "auto":
        backend = "gsplat" if device.type == "cuda" else "cpu"
    if backend not in _BACKENDS:
        raise InputError(f"The backend is 'auto', 'cpu', 'reference' or 'gsplat'; got {backend!r}.")
    if backend == "gsplat" and (problem := gsplat_problem()):
        raise InputError(problem)
    if device.type != {"cpu": "cpu", "gsplat": "cuda"}.get(backend, device.type):
        raise InputError(f"The backend {backend!r} does not render splats on the device {str(device)!r}.")
    return backend


def _render_numba(
    splats: Splats, colors: Tensor, opacities: Tensor, camera: Cameras, background: Color
) -> RenderedView:
    projected = project(
        splats.means.double(), splats.log_scales.double(), splats.quaternions.double(), opacities, camera
    )
    image, alpha = rasterize(projected, colors, opacities, camera.image_size, background)
    return RenderedView(image, alpha, projected.means, projected.visible)


def _render_reference(
    splats: Splats, colors: Tensor, opacities: Tensor, camera: Cameras, background: Color
) -> RenderedView:
    means, covariances, depths = reference.project(splats.means, splats.log_scales, splats.quaternions, camera)
    image, alpha = reference.rasterize(means, covariances, depths, colors, opacities, camera.image_size, background)
    visible = project(splats.means, splats.log_scales, splats.quaternions, opacities, camera).visible
    return RenderedView(image, alpha, means, visible)


def _render_gsplat(
    splats: Splats, colors: Tensor, opacities: Tensor, camera: Cameras, background: Color
) -> RenderedView:
    from gsplat import rasterization

    # Colours (1, N, 3): gsplat itself would evaluate SH for rays from one point, even for orthographic cameras.
    tensors = (splats.means, splats.quaternions, splats.log_scales.exp(), opacities, colors[None])
    float_tensor = torch.empty(0, device=splats.means.device)
    image, alpha, rest = rasterization(
        *(t.float() for t in tensors),
        torch.as_tensor(camera.matrices).to(float_tensor),
        torch.as_tensor(camera.intrinsics).to(float_tensor),
        *camera.image_size[::-1],
        near_plane=NEAR_PLANE,
        eps2d=BLUR,
        packed=False,
        backgrounds=torch.tensor([background]).to(float_tensor),
        rasterize_mode="classic",
        camera_model="ortho" if camera.orthographic else "pinhole",
    )
    return RenderedView(image[0], alpha[0, :, :, 0], rest["means2d"], (rest["radii"][0] > 0).all(-1))


_BACKENDS: dict[str, Callable[[Splats, Tensor, Tensor, Cameras, Color], RenderedView]] = {
    "cpu": _render_numba,
    "reference": _render_reference,
    "gsplat": _render_gsplat,
}
