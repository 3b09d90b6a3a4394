"""Inputs of a network made of volumes, and the location of each input in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ...errors import InputError
from ...grid import Grid
from ...super_resolution.intensities import Intensities
from ...types import Float32Array
from ..settings import InputSettings, Normalise
from .explained_model import ExplainedModel, Model

_PIXELS = 2**18  # of a batch
_MULTIPLES = (1, 8, 16, 32)  # input sizes of networks with pooling are multiples of one of these
_DEFAULT_KINDS = ((2, 1), (2, 3), (3, 1))  # axes and channels, of networks without a convolution
_SIZES = ("image_size", "img_size")  # attributes with the fixed input size of a network


@dataclass(frozen=True, eq=False)
class Volume:
    """Image that is explained: a volume, or a slice.

    Attributes
    ----------
    name : str
        Name for files and messages.
    data : ndarray of float32, (Z, Y, X) or (Y, X)
        Intensities, finite and not constant.
    grid : Grid
    """

    name: str
    data: Float32Array
    grid: Grid

    @classmethod
    def of(cls, name: str, data: ArrayLike, grid: Grid | None = None) -> Volume:
        """Return the volume in an array; raise InputError if it is not finite, or constant."""
        array = np.asarray(data)
        if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
            raise InputError(f"{name} has the shape {array.shape}; an image has 2 or 3 axes and one intensity a voxel.")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinite intensities, which would spread; replace them first.")
        if array.size == 0 or array.min() == array.max():
            raise InputError(f"{name} is constant, so there is nothing in it to explain.")
        return cls(name, array, Grid(array.shape) if grid is None else grid)


@dataclass(frozen=True)
class Place:
    """Location of an input in its volume.

    Attributes
    ----------
    volume : int
        Number of the volume.
    slice : int, or None
        Number of the slice; None for inputs that are volumes.
    start : tuple of int
        Index of the first voxel along the axes of the input; negative where padded.
    extent : tuple of int
        Number of voxels along these axes.
    """

    volume: int
    slice: int | None
    start: tuple[int, ...]
    extent: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Orientation of inputs in volumes.

    Attributes
    ----------
    axes : tuple of int
        Axes of a volume (Z, Y, X) that the two or three axes of an input are along.
    across : int, or None
        Axis along which slices are stacked.
    shifts : tuple of int
        Offset of the slice of each channel.
    one_each : bool
        True if each channel is a volume of its own.
    """

    axes: tuple[int, ...]
    across: int | None
    shifts: tuple[int, ...] = (0,)
    one_each: bool = False


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs of a network, made batch by batch on each iteration.

    Attributes
    ----------
    volumes : list of Volume
    places : list of Place
        Locations of the inputs.
    layout : Layout
    device : str
    """

    volumes: list[Volume]
    places: list[Place]
    layout: Layout
    device: str
    _normal: list[Float32Array]  # (Z, Y, X), normalised

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield torch.cat([self.input(place) for place in batch])

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    @property
    def batches(self) -> list[list[Place]]:
        """Locations of the inputs of each batch, of one extent."""
        batches: list[list[Place]] = []
        for place in self.places:
            extent = place.extent
            if batches and batches[-1][0].extent == extent and (len(batches[-1]) + 1) * math.prod(extent) <= _PIXELS:
                batches[-1].append(place)
            else:
                batches.append([place])
        return batches

    def input(self, place: Place) -> Tensor:
        """Return one input, (1, channels, *extent)."""
        layout = self.layout
        which = range(len(self._normal)) if layout.one_each else [place.volume] * len(layout.shifts)
        shifts = layout.shifts if not layout.one_each else (0,) * len(self._normal)
        channels = [self._crop(self._normal[v], place, shift) for v, shift in zip(which, shifts, strict=True)]
        return torch.from_numpy(np.stack(channels)[None]).to(self.device)

    def intensities(self, place: Place) -> Float32Array:
        """Return the voxels of an input, (*extent), in the intensities of its volume."""
        return self._crop(_three(self.volumes[place.volume].data), place, 0)

    def crop(self, array: NDArray[Any], place: Place) -> NDArray[Any]:
        """Return the part of an array (Z, Y, X), on the grid of a volume, that an input covers, (*extent)."""
        return self._crop(array, place, 0)

    def at(self, places: list[Place]) -> Images:
        """Return the inputs at other locations."""
        return replace(self, places=places)

    def subset(self, count: int) -> list[Place]:
        """Return the locations of at most `count` inputs, evenly spaced."""
        total = len(self.places)
        return [self.places[int((i + 0.5) * total / count)] for i in range(count)] if count < total else self.places

    def middle(self, volume: int, patch: int | None = None) -> Place:
        """Return the location of the middle input of a volume, or of its central patch of `patch` voxels."""
        own = [place for place in self.places if place.volume == volume]
        place = own[len(own) // 2]
        if patch is None:
            return place
        extent = tuple(min(n, patch) for n in place.extent)
        start = tuple(s + (n - m) // 2 for s, n, m in zip(place.start, place.extent, extent, strict=True))
        return replace(place, start=start, extent=extent)

    def _crop(self, volume: NDArray[Any], place: Place, shift: int) -> NDArray[Any]:
        layout = self.layout
        if layout.across is not None:
            assert place.slice is not None
            last = volume.shape[layout.across] - 1
            image = volume.take(min(max(place.slice + shift, 0), last), layout.across)
            rest = [axis for axis in range(3) if axis != layout.across]
            image = image.transpose([rest.index(axis) for axis in layout.axes])
        else:
            image = volume
        # Padding repeats the border.
        where = [
            np.clip(start + np.arange(n), 0, size - 1)
            for start, n, size in zip(place.start, place.extent, image.shape, strict=True)
        ]
        return np.ascontiguousarray(image[np.ix_(*where)])


def as_volumes(images: Sequence[Volume | ArrayLike]) -> list[Volume]:
    """Return images as volumes; arrays get names by their number.

    Examples
    --------
    >>> import numpy as np
    >>> from napari_gsvolume.explain.models.inputs import as_volumes
    >>> [volume] = as_volumes([np.eye(8)])
    >>> volume.name, volume.grid.shape
    ('image 1', (8, 8))
    """
    return [
        image if isinstance(image, Volume) else Volume.of(f"image {number}", image)
        for number, image in enumerate(images, 1)
    ]


def prepare_images(model: Model, images: Sequence[Volume | ArrayLike], settings: InputSettings | None = None) -> Images:
    """Return inputs of a model made of images: slices, with neighbours where the model uses them, or volumes.

    Inputs of a super-resolution model are normalized slices as in its training. Other models get the axes and channels
    of their first convolution; sizes are padded to a multiple of 8, 16 or 32 where necessary.

    Raises
    ------
    InputError
        If there are no images, they do not match, or the model cannot be called with inputs made of them.
    """
    from ...devices import available_device

    loaded, volumes, settings = ExplainedModel.of(model), as_volumes(images), settings or InputSettings()
    if not volumes:
        raise InputError("There are no images to run the model with.")
    device = available_device(settings.device)
    loaded.model.to(device)
    if loaded.settings is not None:
        return _super_resolution_images(loaded, list(volumes), settings, device)
    kinds = _kinds(loaded.model)
    tried, reason = [], ""
    for (axes, channels), (multiple, size) in product(kinds, _sizes(loaded.model, settings.size)):
        layout = _layout(axes, channels, volumes, settings)
        normal = [_normalize(_three(volume.data), settings.normalise) for volume in volumes]
        places = _places(volumes, layout, settings.slices, multiple, size)
        inputs = Images(list(volumes), places, layout, device, normal)
        batch = inputs.input(inputs.places[0])
        shape = "x".join(map(str, batch.shape))
        if shape in tried:
            continue
        tried.append(shape)
        try:
            loaded.run(batch, settings.seed)
        except ValueError as error:
            reason = str(error).rstrip(".")
            continue
        return inputs
    raise InputError(
        f"The model {type(loaded.model).__name__} cannot be called with inputs made of {volumes[0].name}; tried "
        f"{', '.join(tried)}; give its size, or other channels. Its last error: {reason.partition('): ')[2]}."
    )


def _super_resolution_images(
    loaded: ExplainedModel, volumes: list[Volume], settings: InputSettings, device: str
) -> Images:
    trained = loaded.settings
    assert trained is not None
    along = "zyx".index(settings.axis)
    half = trained.depth // 2
    shifts = tuple(range(-half, half + 1))
    if any(volume.data.ndim == 2 for volume in volumes) or trained.upsample_axes == "in-plane":
        layout = Layout(_others(along), along, shifts)
    else:  # rows are along the axis that is upsampled
        across, columns = _others(along)
        layout = Layout((along, columns), across, shifts)
    if any(volume.data.ndim == 2 for volume in volumes) and along != 0:
        raise InputError("An image of two axes is one slice along z; leave the axis at z.")
    places = _places(volumes, layout, settings.slices, 1, settings.size)
    normal = []
    for volume in volumes:
        line = Intensities.of(volume.data)
        normal.append(((_three(volume.data) - line.centre) / line.scale).astype(np.float32))
    return Images(volumes, places, layout, device, normal)


def _layout(axes: int, channels: int, volumes: Sequence[Volume], settings: InputSettings) -> Layout:
    flat = [volume.name for volume in volumes if volume.data.ndim == 2]
    along = "zyx".index(settings.axis)
    if axes == 3 and flat:
        raise InputError(f"{flat[0]} is an image of two axes, and the model takes volumes.")
    if flat and along != 0:
        raise InputError(f"{flat[0]} is an image of two axes, one slice along z; leave the axis at z.")
    one_each = settings.channels == "images"
    if one_each:
        if len(volumes) != channels:
            raise InputError(f"The model has {channels} channels, one image each; {len(volumes)} images are given.")
        if any(volume.data.shape != volumes[0].data.shape for volume in volumes):
            raise InputError("Images that are channels of one input have one shape; these have several.")
    half = channels // 2 if settings.channels == "neighbours" else 0
    if half and (axes == 3 or channels % 2 == 0):
        raise InputError(f"Neighbouring slices are an odd number of channels of 2D images; the model has {channels}.")
    shifts = tuple(range(-half, half + 1)) if half else (0,) * channels
    if axes == 3:
        return Layout((0, 1, 2), None, shifts, one_each)
    return Layout(_others(along), along, shifts, one_each)


def _kinds(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Return the numbers of axes and channels that inputs may have, the likeliest first."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            return ((2 if isinstance(module, nn.Conv2d) else 3, module.in_channels),)
    return _DEFAULT_KINDS


def _sizes(model: nn.Module, size: int | None) -> list[tuple[int, int | None]]:
    """Return candidates of input sizes: the multiple that they are padded to, and the size of tiles, if fixed."""
    if size is not None:
        return [(1, size)]
    sizes: list[tuple[int, int | None]] = [(multiple, None) for multiple in _MULTIPLES]
    for module in model.modules():
        for name in _SIZES:
            side = getattr(module, name, None)
            side = side[0] if isinstance(side, (tuple, list)) and len(set(side)) == 1 else side
            if isinstance(side, int) and side > 0 and (1, side) not in sizes:
                sizes.append((1, side))
    return sizes


def _places(
    volumes: Sequence[Volume], layout: Layout, slices: int | None, multiple: int, size: int | None
) -> list[Place]:
    places = []
    for number, volume in enumerate(volumes[:1] if layout.one_each else volumes):
        shape = _three(volume.data).shape
        which: list[int | None] = [None]
        if layout.across is not None:
            count = shape[layout.across]
            wanted = min(count, slices or count)
            which = [int((i + 0.5) * count / wanted) for i in range(wanted)]
        starts, extent = [], []
        for n in (shape[axis] for axis in layout.axes):
            side = size or math.ceil(n / multiple) * multiple
            tiles = math.ceil(n / side)
            extent.append(side)
            starts.append([round(s) for s in np.linspace(0, n - side, tiles)] if tiles > 1 else [(n - side) // 2])
        places += [Place(number, k, corner, tuple(extent)) for k in which for corner in product(*starts)]
    return places


def _normalize(volume: Float32Array, method: Normalise) -> Float32Array:
    if method == "none":
        return volume
    if method == "standard":
        centre, scale = float(volume.mean(dtype=np.float64)), float(volume.std(dtype=np.float64))
    else:
        low, high = np.percentile(volume, (1, 99)) if method == "robust" else (volume.min(), volume.max())
        if low == high:
            low, high = volume.min(), volume.max()
        centre, scale = float(low), float(high) - float(low)
    return ((volume - np.float32(centre)) / np.float32(scale)).astype(np.float32)


def _others(axis: int) -> tuple[int, int]:
    first, second = (k for k in range(3) if k != axis)
    return first, second


def _three(data: Float32Array) -> Float32Array:
    return data[None] if data.ndim == 2 else data
