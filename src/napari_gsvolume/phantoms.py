"""Synthetic volumes with known content: a body in CT, and trees of vessels.

Shapes are painted over one another. Each is a signed distance in mm (negative inside); the coverage of a voxel follows
from the distance of its centre, which gives the soft edges of partial volume effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import make_interp_spline
from scipy.spatial.transform import Rotation

from .errors import InputError
from .grid import Grid
from .types import Float32Array, Float64Array

__all__ = ["anatomical_phantom", "vessel_phantom"]

# The coordinates (z, y, x) of one point or, as arrays that broadcast, of a box of voxels.
Positions = tuple[Any, Any, Any]
EulerAngles = tuple[float, float, float]

_BODY_WIDTH = 384.0  # mm: 3 mm voxels at 128
_VESSELS_WIDTH = 64.0  # mm: 0.5 mm voxels at 128

# Hounsfield units, in the portal phase after contrast medium.
_AIR, _LUNG, _FAT, _WATER, _MUSCLE, _BLOOD, _CARTILAGE = -1000, -850, -100, 10, 55, 200, 90
_MARROW, _SPONGIOSA, _CORTICAL = 120, 220, 850


def anatomical_phantom(size: int = 128, *, noise: float = 0.01, seed: int = 0) -> tuple[Float32Array, Grid]:
    """Return a synthetic CT of chest and upper abdomen, with contrast medium in the portal venous phase.

    Parameters
    ----------
    size : int
        Number of voxels along each axis, at least 16. The body has a fixed size; voxels measure ``384 / size`` mm.
    noise : float
        Standard deviation of the Gaussian noise, as a fraction of 2000 HU; 0 or more.
    seed : int
        Random seed of vessels, bowel, texture and noise.

    Returns
    -------
    volume : ndarray of float32, (Z, Y, X)
        Hounsfield units: -1000 for air, -850 for lung, around 0 for soft tissue, up to 850 for bone.
    grid : Grid
        Grid in mm, centred on 0. As in DICOM, z grows towards the head, y towards the back and x towards the left.

    Raises
    ------
    InputError
        If `size` is below 16 or `noise` is negative; a ValueError.

    See Also
    --------
    vessel_phantom : Sparse volume of bright vessels.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import anatomical_phantom
    >>> volume, grid = anatomical_phantom(16)
    >>> volume.shape, grid.voxel_size.tolist(), grid.units
    ((16, 16, 16), [24.0, 24.0, 24.0], ('mm', 'mm', 'mm'))
    """
    _check(size, noise)
    canvas = _Canvas(size, _BODY_WIDTH, _AIR)
    rng_shapes, rng_texture, rng_noise = np.random.default_rng(seed).spawn(3)
    canvas.texture = _texture(canvas.axis, rng_texture)
    _paint_trunk(canvas)
    _paint_chest(canvas, rng_shapes)
    _paint_abdomen(canvas, rng_shapes)
    _paint_spine(canvas)
    _paint_ribs(canvas)
    _paint_large_vessels(canvas)
    return _with_noise(canvas, 2000 * noise, rng_noise)


def vessel_phantom(size: int = 128, *, noise: float = 0.005, seed: int = 0) -> tuple[Float32Array, Grid]:
    """Return a synthetic volume of two trees of bright vessels on an empty background.

    Parameters
    ----------
    size : int
        Number of voxels along each axis, at least 16; voxels measure ``64 / size`` mm. Vessels branch down to a radius
        of 0.8 voxels: larger phantoms have more branches.
    noise : float
        Standard deviation of the Gaussian noise; 0 or more.
    seed : int
        Random seed of vessels and noise.

    Returns
    -------
    volume : ndarray of float32, (Z, Y, X)
        Intensities from 0 to 1 before noise; the noise is not clipped.
    grid : Grid
        Grid in mm, centred on 0.

    Raises
    ------
    InputError
        If `size` is below 16 or `noise` is negative; a ValueError.

    See Also
    --------
    anatomical_phantom : Synthetic CT of a body.

    Examples
    --------
    >>> from napari_gsvolume.phantoms import vessel_phantom
    >>> volume, grid = vessel_phantom(16, noise=0)
    >>> volume.shape, float(volume.min()) >= 0, float(volume.max()) <= 1
    ((16, 16, 16), True, True)
    """
    _check(size, noise)
    canvas = _Canvas(size, _VESSELS_WIDTH, 0)
    rng_shapes, rng_noise = np.random.default_rng(seed).spawn(2)
    smallest = 0.8 * canvas.voxel
    trunk = max(_VESSELS_WIDTH / 32, 1.5 * smallest)
    reach = _VESSELS_WIDTH / 2 - trunk - canvas.voxel
    tubes = []
    for side in (-1, 1):
        start, direction = (
            np.array([side * reach, 0.4 * side * reach, -0.4 * reach]),
            np.array([-side, 0.0, 0.2]),
        )
        tubes += _tree(rng_shapes, start, direction, trunk, smallest, lambda p: bool(np.abs(p).max() <= reach))
    canvas.blend(canvas.cover(tubes), 1)
    return _with_noise(canvas, noise, rng_noise)


class _Tube(NamedTuple):
    """A straight piece of vessel, bone or bowel with round ends (mm)."""

    start: Float64Array
    end: Float64Array
    start_radius: float
    end_radius: float

    def narrowed(self, wall: float) -> _Tube:
        return self._replace(start_radius=self.start_radius - wall, end_radius=self.end_radius - wall)


class _Canvas:
    """A cube of voxels, centred on the world's 0, to paint shapes on."""

    def __init__(self, size: int, width: float, background: float) -> None:
        self.voxel = width / size
        self.axis = ((np.arange(size) - (size - 1) / 2) * self.voxel).astype(np.float32)
        self.values = np.full((size,) * 3, background, np.float32)
        self.texture: Float32Array = np.zeros((1, 1, 1), np.float32)

    @property
    def places(self) -> Positions:
        """Coordinates of all voxels."""
        return self.axis[:, None, None], self.axis[:, None], self.axis

    def paint(self, distance: Any, value: float, grain: float = 0) -> None:
        """Give the inside of a shape a value, with texture of standard deviation `grain`."""
        self.blend(np.clip(0.5 - distance / self.voxel, 0, 1), value, grain)

    def blend(self, cover: Any, value: float, grain: float = 0) -> None:
        """Mix a value in, by the part of it that each voxel takes."""
        paint = value + grain * self.texture if grain else np.float32(value)
        self.values += cover * (paint - self.values)

    def cover(self, tubes: list[_Tube]) -> Float32Array:
        """Return the part of each voxel that lies in any of the tubes."""
        cover = np.zeros_like(self.values)
        for tube in tubes:
            # One thinner than a voxel fills only part of it: it is drawn a voxel thick, but as much fainter.
            thinnest = self.voxel / 2
            start_radius, end_radius = max(tube.start_radius, thinnest), max(tube.end_radius, thinnest)
            strength = min(1.0, (tube.start_radius / thinnest) ** 2) if tube.start_radius > 0 else 0.0
            margin = max(start_radius, end_radius) + self.voxel
            low = np.searchsorted(self.axis, np.minimum(tube.start, tube.end) - margin)
            high = np.searchsorted(self.axis, np.maximum(tube.start, tube.end) + margin)
            if strength == 0 or (low >= high).any():
                continue
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            z, y, x = (self.axis[s] - c for s, c in zip(box, tube.start.astype(np.float32), strict=True))
            along = (tube.end - tube.start).astype(np.float32)
            z, y = z[:, None, None], y[:, None]
            t = np.clip((z * along[0] + y * along[1] + x * along[2]) / (along @ along), 0, 1)
            away = (z - t * along[0]) ** 2 + (y - t * along[1]) ** 2 + (x - t * along[2]) ** 2
            distance = np.sqrt(away) - (start_radius + t * (end_radius - start_radius))
            part = strength * np.clip(0.5 - distance / self.voxel, 0, 1)
            np.maximum(cover[box], part, out=cover[box])
        return cover


def _check(size: int, noise: float) -> None:
    if size < 16:
        raise InputError(f"A phantom needs at least 16 voxels along each axis; got {size}.")
    if not noise >= 0:
        raise InputError(f"The noise is a standard deviation, 0 or more; got {noise}.")


def _with_noise(canvas: _Canvas, deviation: float, rng: np.random.Generator) -> tuple[Float32Array, Grid]:
    shape = canvas.values.shape
    affine = np.diag([canvas.voxel] * 3 + [1.0])
    affine[:3, 3] = canvas.axis[0]
    noise = np.float32(deviation) * rng.standard_normal(shape, np.float32)
    return canvas.values + noise, Grid(shape, affine, ("mm",) * 3)


def _texture(axis: NDArray[np.float32], rng: np.random.Generator, waves: int = 64) -> Float32Array:
    """Return a smooth field of variance 1: plane waves 10 to 50 mm long, the same at any resolution."""
    directions = rng.normal(size=(waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions * (2 * np.pi / np.geomspace(10, 50, waves))[:, None]
    # exp(i k.p) is a product over the axes, so that the sum over the waves is one matrix product.
    z, y, x = (np.exp(1j * vectors[:, i, None] * axis).astype(np.complex64) for i in range(3))
    z *= np.exp(2j * np.pi * rng.random(waves))[:, None].astype(np.complex64)
    zy = (z[:, :, None] * y[:, None, :]).reshape(waves, -1)
    field = zy.real.T @ x.real - zy.imag.T @ x.imag
    return np.asarray(field * np.sqrt(2 / waves), np.float32).reshape((axis.size,) * 3)


def _oval(places: Positions, height: Any, width: Any, middle: Any = 0.0) -> Any:
    """Distance to an upright cylinder of semi-axes `height` (y) and `width` (x); both may depend on z."""
    _, y, x = places
    y = y - middle
    k = np.sqrt((y / height) ** 2 + (x / width) ** 2) + 1e-6
    slope = np.sqrt((y / height**2) ** 2 + (x / width**2) ** 2) + 1e-6 / width
    return k * (k - 1) / slope


def _ellipsoid(places: Positions, centre: ArrayLike, radii: ArrayLike, angles: EulerAngles | None = None) -> Any:
    """Return the distance to an ellipsoid, exact near its surface; `angles` rotate it about z, y and x, degrees."""
    radii = np.asarray(radii, np.float32)
    offset = [p - c for p, c in zip(places, np.asarray(centre, np.float32), strict=True)]
    if angles is not None:
        rows = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().astype(np.float32)
        offset = [row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in rows]
    scaled = [o / radius for o, radius in zip(offset, radii, strict=True)]
    k = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2) + 1e-6
    z, y, x = (u / radius for u, radius in zip(scaled, radii, strict=True))
    return k * (k - 1) / (np.sqrt(z**2 + y**2 + x**2) + 1e-6 / radii.min())


def _box(places: Positions, centre: Any, halves: Any) -> Any:
    """Distance to an upright box, given its centre and half its sides as (z, y, x)."""
    z, y, x = (abs(p - c) - h for p, c, h in zip(places, centre, halves, strict=True))
    return np.maximum(np.maximum(z, y), x)


def _curve(points: ArrayLike, radius: float, end_radius: float | None = None) -> list[_Tube]:
    """Return a tube through points, as a smooth curve of short pieces."""
    points = np.asarray(points, dtype=np.float64)
    at = np.linspace(0, 1, len(points))
    length = np.linalg.norm(np.diff(points, axis=0), axis=1).sum()
    fine = np.linspace(0, 1, max(2, int(length / 8)))
    path = make_interp_spline(at, points, k=min(3, len(points) - 1))(fine)
    radii = np.linspace(radius, radius if end_radius is None else end_radius, len(fine))
    return [_Tube(path[i], path[i + 1], radii[i], radii[i + 1]) for i in range(len(fine) - 1)]


def _tree(
    rng: np.random.Generator,
    start: Float64Array,
    direction: Float64Array,
    radius: float,
    smallest: float,
    has_room: Callable[[Float64Array], bool],
) -> list[_Tube]:
    """Return a vessel that forks until its branches are `smallest` in radius or run out of room.

    At a fork the cubes of the radii add up (Murray's law) and the thinner branch turns off more.
    """
    tubes = []
    buds = deque([(start, _unit(direction), radius)])
    while buds:
        point, direction, radius = buds.popleft()
        for _ in range(3):
            step = _step(rng, point, direction, rng.uniform(2, 5) * radius, has_room)
            if step is None:
                break
            end, direction = step
            tubes.append(_Tube(point, end, radius, 0.985 * radius))
            point, radius = end, 0.985 * radius
        else:
            share = rng.uniform(0.25, 0.5)
            sideways = _unit(np.cross(direction, rng.normal(size=3)))
            for part, sign in ((share, 1), (1 - share, -1)):
                thinner = radius * part ** (1 / 3)
                if thinner >= smallest:
                    angle = sign * np.radians(75) * (1 - part)
                    buds.append((point, np.cos(angle) * direction + np.sin(angle) * sideways, thinner))
    return tubes


def _step(
    rng: np.random.Generator,
    point: Float64Array,
    direction: Float64Array,
    length: float,
    has_room: Callable[[Float64Array], bool],
) -> tuple[Float64Array, Float64Array] | None:
    """Return the next point and direction of a winding vessel, or None where it is stuck."""
    for bend in (0.15, 0.3, 0.5, 0.7, 0.9, 1.2):
        bent = _unit(direction + bend * rng.normal(size=3))
        end = point + length * bent
        if has_room(end):
            return end, bent
    return None


def _unit(vector: Float64Array) -> Float64Array:
    return vector / np.linalg.norm(vector)


# The chest wall, as the inside of the ribs: narrower towards the neck.
_WALL_MIDDLE = -3.0


def _wall(z: Any) -> tuple[Any, Any]:
    """Return the semi-axes (y, x) of the chest and belly cavity at a height."""
    narrowing = 1 - 0.42 * np.clip((z - 60) / 130, 0, 1) ** 1.6
    waist = 1 - 0.06 * np.exp(-(((z + 110) / 70) ** 2))
    return 78 * narrowing**0.8 * waist, 126 * narrowing * waist


def _diaphragm(places: Positions) -> Any:
    right = _ellipsoid(places, (-150, 2, -55), (150, 95, 82))
    left = _ellipsoid(places, (-165, 2, 55), (150, 95, 82))
    return np.minimum(right, left)


def _lung(places: Positions, side: int) -> Any:
    """Distance to the right (-1) or left (1) lung."""
    lung = _ellipsoid(places, (15, 5, 75 * side), (165, 90, 62))
    chest = _oval(places, *_wall(places[0]), _WALL_MIDDLE) + 3
    return np.maximum(np.maximum(lung, chest), -_diaphragm(places))


def _paint_trunk(canvas: _Canvas) -> None:
    places = canvas.places
    z = places[0]
    waist = 1 - 0.08 * np.exp(-(((z + 90) / 70) ** 2))
    skin = _oval(places, 112 * waist, 168 * waist)
    canvas.paint(skin, 30)
    canvas.paint(skin + 2.5, _FAT, 12)
    canvas.paint(_oval(places, 97 * waist, 150 * waist, -1), _MUSCLE, 12)
    canvas.paint(_oval(places, *_wall(z), _WALL_MIDDLE), _FAT, 12)


def _paint_chest(canvas: _Canvas, rng: np.random.Generator) -> None:
    places = canvas.places
    for side in (-1, 1):
        canvas.paint(_lung(places, side), _LUNG, 20)
    for side in (-1, 1):

        def inside(p: Float64Array, side: int = side) -> bool:
            return bool(_lung((p[0], p[1], p[2]), side) < -3)

        vessels, bronchi = [], []
        hilum = np.array([55.0, 8.0, 42.0 * side])
        beside = hilum + np.array([6, 6, 0])
        for z, y, x in (
            (0.9, 0.1, 0.5),
            (0.5, 0.8, 0.5),
            (0.1, -0.6, 0.9),
            (-0.6, 0.6, 0.6),
            (-0.9, -0.2, 0.5),
        ):
            forward = np.array([z, y, x * side])
            vessels += _tree(rng, hilum, forward, 5, 0.8, inside)
            bronchi += _tree(rng, beside, forward, 4.5, 2.2, inside)
        canvas.blend(canvas.cover(vessels), 60)
        bronchi += _curve([(88, 8, 0), (72, 9, 18 * side), beside], 8, 5.5)
        canvas.blend(canvas.cover(bronchi), 10)
        canvas.blend(canvas.cover([tube.narrowed(1.4) for tube in bronchi]), _AIR)
    trachea = _curve([(200, -8, 0), (140, 2, 0), (86, 9, 0)], 10)
    canvas.blend(canvas.cover(trachea), 40)
    canvas.blend(canvas.cover([tube.narrowed(2) for tube in trachea]), _AIR)
    canvas.blend(canvas.cover(_curve([(200, 14, 3), (80, 27, 2), (-30, 28, 18)], 6)), 40)  # oesophagus

    heart = (30, 28, 10)
    canvas.paint(_ellipsoid(places, (24, -26, 16), (46, 42, 58), heart), 40)
    canvas.paint(_ellipsoid(places, (24, -26, 16), (43, 39, 55), heart), 120, 8)  # muscle of the heart
    canvas.paint(_ellipsoid(places, (16, -26, 38), (20, 19, 30), heart), _BLOOD + 10)  # left ventricle
    canvas.paint(_ellipsoid(places, (18, -48, 4), (26, 12, 32), heart), _BLOOD - 10)  # right ventricle
    canvas.paint(_ellipsoid(places, (38, -16, -22), (26, 20, 15)), _BLOOD - 15)  # right atrium
    canvas.paint(_ellipsoid(places, (46, 2, 12), (16, 13, 24)), _BLOOD)  # left atrium


def _paint_abdomen(canvas: _Canvas, rng: np.random.Generator) -> None:
    places = canvas.places
    cavity = _oval(places, *_wall(places[0]), _WALL_MIDDLE) + 4
    below = np.maximum(cavity, _diaphragm(places) + 4)

    bowel = rng.uniform((-200, -58, -45), (-128, 5, 60), size=(26, 3))
    loops = _curve(bowel, 9)
    canvas.blend(canvas.cover(loops), 60)
    canvas.blend(canvas.cover([tube.narrowed(2.5) for tube in loops]), 15)
    colon = _curve([(-200, 0, -95), (-150, 0, -92), (-118, -45, -70), (-112, -58, 0), (-95, -40, 78)], 17)
    colon += _curve([(-95, -40, 78), (-130, 10, 98), (-200, 5, 95)], 16)
    canvas.blend(canvas.cover(colon), 50)
    canvas.blend(canvas.cover([tube.narrowed(2.5) for tube in colon]), -30, 60)

    liver = _ellipsoid(places, (-62, -8, -58), (78, 82, 78), (0, 12, 0))
    liver = np.minimum(liver, _ellipsoid(places, (-40, -42, 10), (38, 34, 62), (0, 15, 0)))
    liver = np.maximum(liver, below)
    canvas.paint(liver, 110, 6)
    portal = _tree(
        rng,
        np.array([-70.0, 0.0, -28.0]),
        np.array([0.1, -0.2, -1.0]),
        7.0,
        1.8,
        lambda p: bool(_ellipsoid((p[0], p[1], p[2]), (-62, -8, -58), (64, 66, 62)) < 0),
    )
    canvas.blend(canvas.cover(portal), 165)
    canvas.paint(_ellipsoid(places, (-108, -48, -42), (24, 14, 13), (0, 20, 0)), _WATER)  # gallbladder

    stomach = np.maximum(_ellipsoid(places, (-62, -32, 55), (44, 36, 44), (0, 25, 0)), below)
    canvas.paint(stomach, 60)
    canvas.paint(stomach + 4, 25, 10)
    canvas.paint(np.maximum(stomach + 4, places[1] + 44), _AIR)  # the bubble, under the front wall
    canvas.paint(np.maximum(_ellipsoid(places, (-62, 38, 88), (44, 34, 24), (0, 0, -25)), below), 125, 4)  # spleen
    canvas.blend(canvas.cover(_curve([(-105, -5, -30), (-96, -12, 10), (-82, 14, 62)], 11, 8)), 85)  # pancreas
    for side in (-1, 1):
        for scale, value in ((1.0, 190), (0.66, 140), (0.3, _FAT)):  # cortex, medulla, sinus
            radii = scale * np.array([52, 25, 26])
            canvas.paint(_ellipsoid(places, (-128, 42, 58 * side), radii, (30 * side, 0, 8 * side)), value)


def _paint_spine(canvas: _Canvas) -> None:
    z, y, x = canvas.places
    y = y - 60 - 8 * np.sin(z / 70)
    level = np.mod(z, 30) - 15  # within one vertebra and half a disc on either side
    places = level, y, x
    canvas.paint(_oval(places, 15, 19), _CARTILAGE)  # discs
    arch = np.minimum(_oval(places, 14, 14, 22), _box(places, (0, 18, 0), (5, 4, 34)))
    arch = np.minimum(arch, _box(places, (-4, 42, 0), (6, 14, 3.5)))
    arch = np.maximum(arch, abs(level) - 10)
    body = np.maximum(_oval(places, 17, 21), abs(level) - 12)
    bone = np.minimum(arch, body)
    canvas.paint(bone, _CORTICAL)
    canvas.paint(bone + 2.5, _SPONGIOSA, 20)
    canvas.paint(_oval(places, 9, 10, 24), _WATER + 20)  # the canal


def _paint_ribs(canvas: _Canvas) -> None:
    cartilage, bone = [], []
    for i in range(10):
        last_angle = np.radians(138 if i < 7 else 122 - 14 * (i - 7))
        top = 168 - 27.0 * i
        for side in (-1, 1):
            angle = np.linspace(np.radians(16), last_angle, 14)
            z = top - (22 + 5 * min(i, 5)) * (angle / np.radians(138)) ** 1.3
            height, width = _wall(z)
            y, x = (height + 5) * np.cos(angle) + _WALL_MIDDLE, (width + 5) * np.sin(angle) * side
            path = np.stack([z, y, x], axis=1)
            bone += _curve(path, 5.5)
            if i < 7:
                breast = np.array([max(z[-1] + 4.0 * i, 20.0), -86 + 0.09 * max(z[-1] - 40, 0), 14 * side])
                cartilage += _curve([path[-1], (path[-1] + breast) / 2 - (6, 3, 0), breast], 5)
    canvas.blend(canvas.cover(cartilage), _CARTILAGE)
    sternum = _ellipsoid(canvas.places, (75, -84, 0), (68, 6, 18), (0, 0, -6))
    canvas.paint(sternum, _CORTICAL)
    canvas.paint(sternum + 2, _MARROW)
    canvas.blend(canvas.cover(bone), _CORTICAL)
    canvas.blend(canvas.cover([tube.narrowed(1.8) for tube in bone]), _MARROW)


def _paint_large_vessels(canvas: _Canvas) -> None:
    aorta = _curve([(40, -18, 8), (75, -28, 2), (105, -14, 8), (112, 10, 16), (96, 34, 22), (60, 40, 22)], 13)
    aorta += _curve([(60, 40, 22), (0, 36, 18), (-90, 30, 8), (-200, 32, 6)], 12, 9)
    veins = _curve([(-200, 30, -16), (-90, 26, -20), (-5, 8, -24), (30, -8, -24)], 11)
    veins += _curve([(50, -12, -24), (100, -8, -22), (200, -4, -34)], 9)
    lungs = _curve([(48, -46, 12), (75, -34, 18), (78, -10, 20), (66, 4, 46)], 11, 8)
    lungs += _curve([(78, -12, 18), (70, -4, -10), (62, 4, -46)], 10, 7)
    branches = _curve([(112, 2, 12), (150, -2, 14), (200, 0, 30)], 5) + _curve([(108, -6, 8), (200, 0, -28)], 5)
    for side in (-1, 1):
        branches += _curve([(-112, 31, 6), (-120, 36, 40 * side)], 4)  # to the kidneys
    canvas.blend(canvas.cover(lungs), _BLOOD - 10)
    canvas.blend(canvas.cover(veins), _BLOOD - 40)
    canvas.blend(canvas.cover(aorta + branches), _BLOOD + 20)
