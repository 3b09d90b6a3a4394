"""Pictures of Gaussians: the kernels against the dense formulas, these against finite differences and closed forms."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from scipy.special import factorial, lpmv
from torch import Tensor

from napari_gsvolume.devices import gsplat_problem
from napari_gsvolume.rendering.cameras import Cameras, fibonacci_directions, look_at_cameras, orbit_cameras
from napari_gsvolume.rendering.splats import reference, spherical_harmonics
from napari_gsvolume.rendering.splats.model import Splats
from napari_gsvolume.rendering.splats.projection import BLUR, MIN_ALPHA, NEAR_PLANE, project
from napari_gsvolume.rendering.splats.rasterizer import MAX_ALPHA, MIN_TRANSMITTANCE

NAMES = ("means", "log_scales", "quaternions", "opacity_logits", "sh")
RADIUS = 20.0  # mm, of the ball that the cameras see; about a millimetre a pixel
SIGMAS = {
    "round": (2, 2, 2),
    "anisotropic": (0.5, 2, 6),
    "tiny": (0.01, 0.01, 0.01),
    "huge": (300, 300, 300),
    "needles": (0.02, 0.02, 30),
    "plates": (10, 10, 0.02),
}
SIZES = [(1, 1), (16, 16), (15, 33), (37, 21)]


def splats(
    sigma: tuple[float, ...] = (2, 2, 2), n: int = 20, degree: int = 3, seed: int = 0, opacity: float = 1
) -> Splats:
    """Return Gaussians of all orientations in the ball, in float32; `opacity` is the mean of the logits."""
    random = np.random.default_rng(seed)
    sh = random.normal(size=(n, (degree + 1) ** 2, 3))
    arrays = (
        random.uniform(-RADIUS, RADIUS, (n, 3)) * 0.7,
        np.log(sigma) + random.normal(size=(n, 3)) / 10,
        random.normal(size=(n, 4)),
        opacity + random.normal(size=n),
        sh * 0.3,
    )
    return Splats(*(torch.tensor(a, dtype=torch.float32) for a in arrays))


def cameras(size: tuple[int, int] = (37, 21), *, orthographic: bool = False, n: int = 1) -> Cameras:
    return orbit_cameras(fibonacci_directions(n + 2)[1:-1], RADIUS, size, orthographic=orthographic)


def in_double(some: Splats) -> Splats:
    return Splats(*(getattr(some, name).detach().double() for name in NAMES))


def doubtful(some: Splats, camera: Cameras, rounding: float = 1e-5) -> Tensor:
    """Return pixels ``(H, W)`` where others may decide otherwise: a threshold is nearer than their rounding."""
    exact = in_double(some)
    means, covariances, depths = reference.project(exact.means, exact.log_scales, exact.quaternions, camera)
    order = depths.argsort(stable=True)[(depths <= NEAR_PLANE).sum() :]
    a = reference.alphas(means[order], covariances[order], exact.opacity_logits.sigmoid()[order], camera.image_size)
    near = ((a / MIN_ALPHA - 1).abs() < 10 * rounding) | ((a / MAX_ALPHA - 1).abs() < rounding)
    left = (1 - torch.where(a < MIN_ALPHA, 0, a.clamp_max(MAX_ALPHA))).cumprod(0)
    return (near | ((left / MIN_TRANSMITTANCE - 1).abs() < 100 * rounding)).any(0)


def assert_as_dense(some: Splats, camera: Cameras, background: tuple[float, float, float] = (0.2, 0.5, 0.9)) -> Tensor:
    """Compare image, cover and all gradients with the dense ones in float64, and return the dense image."""
    sure = ~doubtful(some, camera)
    assert sure.double().mean() > 0.95 or sure.numel() < 100
    random = torch.Generator().manual_seed(1)
    light = torch.randn(*camera.image_size, 4, generator=random, dtype=torch.float64) * sure[:, :, None]
    found = []
    for kind, backend in ((some, "cpu"), (in_double(some), "reference")):
        leaves = {name: getattr(kind, name).detach().clone().requires_grad_() for name in NAMES}
        view = Splats(**leaves).render_view(camera, background, backend=backend)
        everything = torch.cat([view.image, view.alpha[:, :, None]], 2).double()
        (everything * light).sum().backward()
        found.append((everything.detach(), {name: t.grad.double() for name, t in leaves.items()}))
    (got, gradients), (expected, exact) = found
    torch.testing.assert_close(got[sure], expected[sure], rtol=0, atol=5e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=0, atol=3e-4 * float(exact[name].abs().max()))
    return expected[:, :, :3]


class TestAgainstTheFormulas:
    @pytest.mark.parametrize("orthographic", [False, True])
    @pytest.mark.parametrize("kind", SIGMAS)
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_any_size(self, size: tuple[int, int], kind: str, orthographic: bool) -> None:
        for camera in cameras(size, orthographic=orthographic, n=2):
            assert assert_as_dense(splats(SIGMAS[kind]), camera).std() > 0

    @pytest.mark.parametrize("degree", range(4))
    def test_degrees(self, degree: int) -> None:
        some = splats(degree=degree)
        assert some.sh_degree == degree
        assert_as_dense(some, cameras()[0])

    @pytest.mark.parametrize("length", [500, 3000])
    def test_needles_across_the_image(self, length: float) -> None:
        """Far along such a Gaussian, its squared radius is a small difference of large numbers."""
        assert_as_dense(splats((0.02, 0.02, length), 8), cameras((150, 130))[0])

    @pytest.mark.parametrize("sigma", [(1e-12, 1, 1e12), (1e40, 1, 1), (1e9, 1e9, 1e9), (1e-60, 1e-60, 1e-60)], ids=str)
    def test_beyond_all_measure(self, sigma: tuple[float, ...]) -> None:
        leaves = {name: getattr(splats(sigma), name).requires_grad_() for name in NAMES}
        image = Splats(**leaves).render(cameras((50, 49)))
        image.sum().backward()
        assert image.max() > 0
        assert all(t.isfinite().all() for t in (image, *(t.grad for t in leaves.values())))

    @pytest.mark.parametrize("orthographic", [False, True])
    def test_hundreds_end_the_pixels(self, orthographic: bool) -> None:
        some, camera = splats((3, 3, 3), 400, opacity=2), cameras((40, 35), orthographic=orthographic)[0]
        assert_as_dense(some, camera)
        assert some.render_view(camera).alpha.max() > 1 - 10 * MIN_TRANSMITTANCE

    def test_opaque(self) -> None:
        """Where alpha is held at its largest, opacity and shape have no gradient."""
        assert_as_dense(splats((200, 200, 200), 4, opacity=12), cameras()[0])

    def test_hardly_there(self) -> None:
        some, camera = splats(n=60, opacity=-5.5), cameras()[0]
        below = some.opacity_logits.sigmoid() < MIN_ALPHA
        assert 0 < below.sum() < 60
        assert not some.render_view(camera).visible[below].any()
        assert_as_dense(some, camera)

    @pytest.mark.parametrize("orthographic", [False, True])
    def test_beside_and_behind(self, orthographic: bool) -> None:
        some = splats((2, 3, 4), 200)
        some = replace(some, means=8 * some.means)
        camera = look_at_cameras([[0, -30.0, 5]], (33, 40), 0.3 if orthographic else 30, orthographic=orthographic)
        seen = some.render_view(camera).visible
        assert 10 < seen.sum() < 150
        assert_as_dense(some, camera)
        only = Splats(*(getattr(some, name)[seen] for name in NAMES))
        assert torch.equal(only.render(camera), some.render(camera))

    def test_all_kinds_at_once(self) -> None:
        kinds = [splats(sigma, 8, seed=seed) for seed, sigma in enumerate(SIGMAS.values())]
        some = Splats(*(torch.cat([getattr(kind, name) for kind in kinds]) for name in NAMES))
        assert_as_dense(some, cameras((50, 49))[0])

    def test_the_camera_among_them(self) -> None:
        """Wide ones at its side are linearised at the edge of the image."""
        camera = look_at_cameras([[0, 0, 0]], (30, 41), 25, target=(1, 0, 0))
        assert_as_dense(splats((1, 2, 3), 100), camera)

    def test_none(self) -> None:
        none, camera = splats(n=0), cameras((5, 18))
        image = none.render(camera, (0.1, 0.2, 0.3))
        assert torch.equal(image, torch.tensor([0.1, 0.2, 0.3]).expand(1, 5, 18, 3))
        assert torch.equal(image, none.render(camera, (0.1, 0.2, 0.3), backend="reference"))
        assert not none.render_view(camera).alpha.any()


class TestTheFormulas:
    @pytest.mark.parametrize("orthographic", [False, True])
    def test_gradients(self, orthographic: bool) -> None:
        some, camera = in_double(splats((1, 2, 4), 4, degree=1)), cameras((7, 6), orthographic=orthographic)[0]

        def everything(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            view = Splats(*tensors).render_view(camera, (0.3, 0.2, 0.1), backend="reference")
            return view.image, view.alpha

        leaves = [getattr(some, name).requires_grad_() for name in NAMES]
        assert torch.autograd.gradcheck(everything, leaves, eps=1e-7, atol=1e-6)

    def test_gradients_of_harmonics(self) -> None:
        sh, rays = (torch.randn(5, *shape, dtype=torch.float64).requires_grad_() for shape in ((16, 3), (3,)))
        assert torch.autograd.gradcheck(lambda a, b: spherical_harmonics.evaluate_colors(a, b, 3), (sh, rays))

    def test_projections(self) -> None:
        some = in_double(splats((0.5, 2, 6)))
        for camera in (
            cameras()[0],
            cameras(orthographic=True)[0],
            look_at_cameras([[0, 0, 0]], (9, 8), 9, target=(1, 0, 0)),
        ):
            means, covariances, depths = reference.project(some.means, some.log_scales, some.quaternions, camera)
            seen = project(some.means, some.log_scales, some.quaternions, some.opacity_logits.sigmoid(), camera)
            conics = torch.linalg.inv(covariances)[:, [0, 0, 1], [0, 1, 1]]
            for got, expected in ((seen.means, means), (seen.conics, conics), (seen.depths, depths)):
                torch.testing.assert_close(
                    got[depths > NEAR_PLANE], expected[depths > NEAR_PLANE], rtol=1e-9, atol=1e-9
                )

    def test_reach_is_tight(self) -> None:
        some, camera = in_double(splats((0.1, 0.3, 1))), cameras((200, 200))[0]
        means, covariances, _ = reference.project(some.means, some.log_scales, some.quaternions, camera)
        a = reference.alphas(means, covariances, some.opacity_logits.sigmoid(), camera.image_size)
        radii = project(some.means, some.log_scales, some.quaternions, some.opacity_logits.sigmoid(), camera).radii
        for k, lines in enumerate(((a >= MIN_ALPHA).any(1), (a >= MIN_ALPHA).any(2))):  # (N, columns), (N, rows)
            shown = lines.sum(1)
            assert (shown <= 2 * radii[:, k] + 1).all()
            assert (shown >= 2 * radii[:, k] - 3).all()

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    @pytest.mark.parametrize("orthographic", [False, True])
    def test_one(self, orthographic: bool, backend: str) -> None:
        """A round one on the axis of the camera: a bell about the middle of the image."""
        sigma, opacity, color, size = 2.0, 0.8, (0.9, 0.5, 0.1), (20, 31)
        sh = (torch.tensor([[color]]) - 0.5) / spherical_harmonics.C0
        logit = torch.tensor([np.log(opacity / (1 - opacity))]).float()
        one = Splats(torch.zeros(1, 3), torch.full((1, 3), np.log(sigma)), torch.tensor([[3.0, 0, 0, 0]]), logit, sh)
        camera = look_at_cameras([[0, -40, 0]], size, 1.5 if orthographic else 60, orthographic=orthographic)
        v, u = np.mgrid[:20, :31] + 0.5
        variance = (1.5 * sigma) ** 2 + BLUR
        a = opacity * np.exp(-((u - 15.5) ** 2 + (v - 10) ** 2) / (2 * variance))
        a[a < MIN_ALPHA] = 0
        expected = a[:, :, None] * color + (1 - a[:, :, None]) * (0.0, 0.3, 0.6)
        view = one.render_view(camera, (0.0, 0.3, 0.6), backend=backend)
        np.testing.assert_allclose(view.image, expected, atol=2e-6)
        np.testing.assert_allclose(view.alpha, a, atol=2e-6)

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    @pytest.mark.parametrize("orthographic", [False, True])
    def test_the_nearer_covers_the_farther(self, orthographic: bool, backend: str) -> None:
        sh = torch.tensor([[[1.0, -1, -1]], [[-1, -1, 1]]]) / 2 / spherical_harmonics.C0  # red, blue
        means = torch.tensor([[0.0, -5, 0], [0, 5, 0]])
        two = Splats(means, torch.ones(2, 3), torch.ones(2, 4), torch.full((2,), 20.0), sh)
        for y, front, behind in ((-60, 0, 2), (60, 2, 0)):
            camera = look_at_cameras([[0, y, 0]], (9, 9), 1 if orthographic else 60, orthographic=orthographic)
            middle = two.render(camera, backend=backend)[0, 4, 4]
            assert abs(middle[front] - MAX_ALPHA) < 1e-6
            # The one behind would leave less than a pixel ends with.
            assert middle[behind] == 0

    def test_equal_depths_lie_as_they_come(self) -> None:
        some = splats(n=6)
        some = replace(some, means=some.means * torch.tensor([1, 0, 1]) / 4)
        camera = look_at_cameras([[0, -40, 0]], (20, 31), 1.5, orthographic=True)
        assert_as_dense(some, camera)
        assert not torch.equal(
            Splats(*(getattr(some, name).flip(0) for name in NAMES)).render(camera), some.render(camera)
        )

    def test_quaternions_turn_the_principal_axes(self) -> None:
        """A needle along x, turned by 90 degrees about y, lies along z: upright in the image."""
        turned = torch.tensor([[1.0, 0, 1, 0]])
        needle = Splats(torch.zeros(1, 3), torch.tensor([[1.5, -3, -3]]), turned, torch.ones(1), torch.ones(1, 1, 3))
        alpha = needle.render_view(look_at_cameras([[0, -40, 0]], (33, 33), 1, orthographic=True)).alpha
        assert (alpha > 0).sum(0).max() > 4 * (alpha > 0).sum(1).max()


class TestHarmonics:
    def test_definition(self) -> None:
        """The real harmonics by Legendre functions, with the Condon-Shortley phase."""
        x, y, z = fibonacci_directions(200).T
        angle = np.arctan2(y, x)
        expected = []
        for n in range(4):
            for m in range(-n, n + 1):
                k = abs(m)
                norm = np.sqrt((2 * n + 1) / (4 * np.pi) * factorial(n - k) / factorial(n + k))
                wave = 1 if m == 0 else np.sqrt(2) * (np.cos(k * angle) if m > 0 else np.sin(k * angle))
                expected.append(norm * lpmv(k, n, z) * wave)
        Y = spherical_harmonics.evaluate_basis(torch.tensor(fibonacci_directions(200)), 3)
        np.testing.assert_allclose(Y, np.stack(expected, 1), atol=1e-12)

    def test_signs_of_the_first_program(self) -> None:
        Y = spherical_harmonics.evaluate_basis(torch.eye(3, dtype=torch.float64), 1)
        C1 = 0.4886025119029199
        np.testing.assert_allclose(Y[:, 1:], [[0, 0, -C1], [-C1, 0, 0], [0, C1, 0]], atol=1e-15)

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_lower_degree(self, backend: str) -> None:
        some, camera = splats(), cameras(n=2)
        flat = replace(some, sh=some.sh[:, :4])
        assert torch.equal(some.render(camera, sh_degree=1, backend=backend), flat.render(camera, backend=backend))
        assert torch.equal(flat.render(camera, sh_degree=3), flat.render(camera))

    def test_orthographic_cameras_see_one_color(self) -> None:
        some = splats(n=5)
        same = replace(some, sh=some.sh[:1].expand(5, -1, -1))
        camera = cameras(orthographic=True)
        colors = same.view_colors(camera)
        assert torch.equal(colors, colors[:1].expand(5, 3))
        torch.testing.assert_close(
            colors[:1], spherical_harmonics.evaluate_colors(some.sh[:1], torch.tensor(camera.directions).float(), 3)
        )
        assert not torch.allclose(same.view_colors(cameras()), colors)


class TestDeterminism:
    def test_threads_do_not_change_a_bit(self) -> None:
        some, camera = splats((1, 2, 4), 500), cameras((70, 65))
        before, most = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS
        results = []
        try:
            for threads in [*{1, max(most // 2, 1), most}, most]:
                numba.set_num_threads(threads)
                leaves = [getattr(some, name).clone().requires_grad_() for name in NAMES]
                image = Splats(*leaves).render(camera)
                image.square().sum().backward()
                results.append([image.detach(), *(t.grad for t in leaves)])
        finally:
            numba.set_num_threads(before)
        for result in results[1:]:
            assert all(torch.equal(*pair) for pair in zip(result, results[0], strict=True))

    def test_calls_from_several_threads(self) -> None:
        some, camera = splats(n=100), cameras((40, 40))
        expected = some.render(camera)
        with ThreadPoolExecutor(4) as pool:
            for image in pool.map(lambda _: some.render(camera), range(8)):
                assert torch.equal(image, expected)


class TestViews:
    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_pulls(self, backend: str) -> None:
        """Moving a Gaussian in an orthographic image by a pixel is moving it by 1 / focal mm."""
        some, camera = splats(), look_at_cameras([[0, -40, 0]], (30, 31), 2, orthographic=True)
        leaf = some.means.clone().requires_grad_()
        view = replace(some, means=leaf).render_view(camera, backend=backend)
        with pytest.raises(ValueError, match="before the backward pass"):
            view.positional_gradients()
        view.image.square().sum().backward()
        torch.testing.assert_close(view.positional_gradients().float(), leaf.grad[:, [0, 2]].norm(dim=1) / 2)
        assert view.positional_gradients().any()

    def test_several_cameras(self) -> None:
        some, several = splats(), cameras(n=3)
        images = some.render(several)
        assert images.shape == (3, 37, 21, 3)
        assert all(torch.equal(image, some.render(camera)[0]) for image, camera in zip(images, several, strict=True))

    def test_inputs_are_left_alone(self) -> None:
        some = splats()
        before = [getattr(some, name).clone() for name in NAMES]
        some.render(cameras())
        assert all(torch.equal(getattr(some, name), old) for name, old in zip(NAMES, before, strict=True))

    def test_memory_layout_and_precision_do_not_matter(self) -> None:
        some = splats()
        strided = Splats(*(torch.stack([getattr(some, name)] * 2, -1)[..., 0] for name in NAMES))
        assert not strided.sh.is_contiguous()
        assert torch.equal(strided.render(cameras()), some.render(cameras()))
        image = in_double(some).render(cameras())
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, some.render(cameras()), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"log_scales": torch.zeros(3, 3)}, r"log_scales of 4 splats have to be of shape \(4, 3\); got \(3, 3\)"),
            ({"quaternions": torch.zeros(4, 3)}, r"quaternions .* \(4, 4\); got \(4, 3\)"),
            ({"opacity_logits": torch.zeros(4, 1)}, r"opacity_logits .* \(4,\); got \(4, 1\)"),
            ({"sh": torch.zeros(4, 3)}, r"sh of 4 splats"),
            ({"sh": torch.zeros(4, 2, 3)}, "1, 4, 9 or 16 coefficients .* got 2"),
            ({"means": torch.full((4, 3), np.nan)}, "means .* NaN or infinite"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changed: dict[str, Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(splats(n=4), **changed)

    def test_backends_that_cannot_be_used_are_refused(self) -> None:
        with pytest.raises(ValueError, match="gsplat"):
            splats().render(cameras(), backend="gsplat")
        with pytest.raises(ValueError, match="'auto', 'cpu', 'reference' or 'gsplat'; got 'fast'"):
            splats().render(cameras(), backend="fast")
        with pytest.raises(ValueError, match="one camera; got 2"):
            splats().render_view(cameras(n=2))
        with pytest.raises(ValueError, match="red, green and blue; got 1"):
            splats().render(cameras(), (0.5,))
        with pytest.raises(ValueError, match="0 to 3; got -1"):
            splats().render(cameras(), sh_degree=-1)


@pytest.mark.gpu
@pytest.mark.skipif(bool(gsplat_problem()), reason=gsplat_problem() or "")
@pytest.mark.parametrize("orthographic", [False, True])
@pytest.mark.parametrize("kind", ["round", "anisotropic", "plates"])
def test_gsplat_shows_the_same(kind: str, orthographic: bool) -> None:
    """gsplat rounds more: its conics are float32, and its exponential is the fast one."""
    some, camera = splats(SIGMAS[kind], 200), cameras((70, 85), orthographic=orthographic)[0]
    sure = ~doubtful(some, camera, 1e-4)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [getattr(some, name).to(device).requires_grad_() for name in NAMES]
        view = Splats(*leaves).render_view(camera, (0.2, 0.5, 0.9))
        (view.image * sure[:, :, None].to(device)).square().sum().backward()
        results.append(
            [t.detach().cpu() for t in (view.image, view.alpha, view.positional_gradients(), *(t.grad for t in leaves))]
        )
    (image, alpha, *gradients), (theirs, their_alpha, *their_gradients) = results
    torch.testing.assert_close(theirs[sure], image[sure], rtol=0, atol=1e-3)
    torch.testing.assert_close(their_alpha[sure], alpha[sure], rtol=0, atol=1e-3)
    for got, expected in zip(their_gradients, gradients, strict=True):
        torch.testing.assert_close(got, expected.float(), rtol=0, atol=1e-2 * float(expected.abs().max()))


def test_joined_splats_are_drawn_as_one_sorted_by_depth():
    def part(n, degree, seed):
        random = np.random.default_rng(seed)
        shapes = (n, 3), (n, 3), (n, 4), (n,), (n, (degree + 1) ** 2, 3)
        return Splats(*(torch.tensor(random.normal(size=shape) * 0.5, dtype=torch.float32) for shape in shapes))

    one, other = part(20, 0, 1), part(10, 2, 2)
    both = Splats.concatenate([one, other])
    assert (len(both), both.sh_degree) == (30, 2)
    turned = Splats.concatenate([other, one])
    camera = cameras((24, 30))
    torch.testing.assert_close(both.render(camera), turned.render(camera))
    alone = Splats.concatenate([one])
    torch.testing.assert_close(alone.render(camera), one.render(camera), rtol=0, atol=0)
    # Harmonics that a part lacks are none.
    torch.testing.assert_close(both.sh[:20, :1], one.sh, rtol=0, atol=0)
    assert not both.sh[:20, 1:].any()
    with pytest.raises(ValueError, match="no splats to concatenate"):
        Splats.concatenate([])
