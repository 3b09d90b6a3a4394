"""A pretended GPU: tensors in the host's memory that say they are on "cuda:0", and are as hard to get at as there.

It tells what a fit on a GPU would do where there is none: which operations mix devices (an error, as in CUDA), at which
the host has to wait for the device (`Card.waits`), and how much of the device's memory is taken (`Card.live`, `peak`).
What only hardware shows, kernels' own memory and speed, it does not.
"""

import contextlib
import sys
import weakref
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from napari_gsvolume import kernels, memory
from napari_gsvolume.fitting import loop
from napari_gsvolume.kernels import cpu

DEVICE = torch.device("cuda:0")
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "_linalg_check_errors", "_linalg_svd", "_linalg_eigh", "linalg_matrix_exp", "multinomial",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Wait(NamedTuple):
    """That the host had to wait for the device: in which operation, called from which line of the package."""

    name: str
    line: str


class OnCard(torch.Tensor):
    """A tensor on the card; `held` are its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, card):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )

    def __init__(self, held, card):
        self.held, self.card = held, card
        card.hold(self)

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    def __repr__(self):
        return f"OnCard({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors: list[torch.Tensor] = []
        given = each(partial(taken_off, tensors), (args, tuple(kwargs.values())))
        ours = {id(t.held): t for t in tensors if isinstance(t, cls)}
        card = next(iter(ours.values())).card
        name = func._schema.name.removeprefix("aten::")
        card.look(name, args, kwargs, tensors)
        out = func(*given[0], **dict(zip(kwargs, given[1], strict=True)))
        # What works in place returns what it was given.
        return each(partial(card.put, ours=ours), out)


def each(change, value):
    """Change what an operation takes or gives, also in lists and tuples; torch's tree_map takes ten times as long."""
    return type(value)(each(change, part) for part in value) if isinstance(value, (list, tuple)) else change(value)


def taken_off(tensors, value):
    """Note a tensor, and return what it holds."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
    return held(value)


def held(value):
    return value.held if isinstance(value, OnCard) else value


class Source(torch.Generator):
    """A source of random numbers that says on which device it is."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)

    def __init__(self, device="cpu"):
        self.place = torch.device(device).type


class Card(TorchFunctionMode):
    """The pretended GPU, while this context lasts, with so many bytes."""

    def __init__(self, capacity=2**40):
        super().__init__()
        self.capacity, self.live, self.peak = capacity, 0, 0
        self.waits = []
        self._views = Counter()

    def by_name(self):
        """How often the host waited in which operation."""
        return Counter(wait.name for wait in self.waits)

    def hold(self, tensor):
        storage = tensor.held.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not self._views[key]:
            if self.live + size > self.capacity:
                del self._views[key]
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB.")
            self.live += size
            self.peak = max(self.peak, self.live)
        self._views[key] += 1
        weakref.finalize(tensor, self._let_go, key, size)

    def _let_go(self, key, size):
        self._views[key] -= 1
        if not self._views[key]:
            del self._views[key]
            self.live -= size

    def wait(self, name):
        frame = sys._getframe(1)
        while frame and "napari_gsvolume" not in frame.f_code.co_filename:
            frame = frame.f_back
        where = f"{frame.f_code.co_filename.rpartition('napari_gsvolume/')[2]}:{frame.f_lineno}" if frame else "?"
        self.waits.append(Wait(name, where))

    def look(self, name, args, kwargs, tensors):
        """Refuse what CUDA refuses, and note what the host would wait for."""
        elsewhere = [t for t in tensors if not isinstance(t, OnCard) and t.ndim]
        if name in INDEXING:
            if not isinstance(args[0], OnCard):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            filled = name != "index" and args[2].numel() == 1
            for index in (i for i in args[1] if i is not None):
                if not isinstance(index, OnCard):
                    self.wait("copy to the device")
                if index.dtype == torch.bool and not filled:
                    self.wait("boolean mask")
            elsewhere = [t for t in elsewhere if not any(t is i for i in args[1])]
        elif name == "copy_" and elsewhere:
            self.wait("copy between devices")
            return
        if elsewhere:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu! ({name})")
        if name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            self.wait(name.lstrip("_"))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        on_card = isinstance(first, OnCard)
        name = getattr(func, "__name__", "")
        if isinstance(first, torch.Tensor) and name in ("to", "cpu", "cuda"):
            return self._moved(first, name, list(args[1:]), kwargs)
        if on_card and name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if on_card and name == "tolist":
            self.wait("copy to the host")
            return first.held.tolist()
        made = "device" in kwargs and torch.device(kwargs["device"] or "cpu").type == "cuda"
        if made:
            kwargs["device"] = "cpu"
        source = kwargs.get("generator")
        if source is not None and (getattr(source, "place", "cpu") == "cuda") != (made or on_card):
            raise RuntimeError(f"Expected a generator on the tensors' device ({name}).")
        out = func(*args, **kwargs)
        if not (made or (on_card and name == "new_tensor")):
            return out
        if name in ("tensor", "as_tensor", "new_tensor") and out.ndim:
            self.wait("copy to the device")
        return tree_map(self.put, out)

    def put(self, value, ours=None):
        """The value as it is; a tensor is said to be on the card: one of `ours`, whose numbers it is, or a new one."""
        if not isinstance(value, torch.Tensor) or isinstance(value, OnCard):
            return value
        return ours[id(value)] if ours and id(value) in ours else OnCard(value, self)

    def _moved(self, tensor, name, args, kwargs):
        """What `to`, `cpu` and `cuda` do."""
        device = DEVICE if name == "cuda" else torch.device("cpu") if name == "cpu" else tensor.device
        dtype = kwargs.pop("dtype", None) or tensor.dtype
        for given in [*args, *([kwargs.pop("device")] if "device" in kwargs else [])]:
            if isinstance(given, torch.Tensor):
                device, dtype = given.device, given.dtype
            elif isinstance(given, torch.dtype):
                dtype = given
            elif isinstance(given, (str, torch.device)):
                device = torch.device(given)
        if device.type == tensor.device.type:
            return tensor if dtype == tensor.dtype else tensor.type(dtype)
        to_card = device.type == "cuda"
        if tensor.ndim or not to_card:
            self.wait("copy to the device" if to_card else "copy to the host")
        copy = held(tensor).to(dtype, copy=True)
        return self.put(copy) if to_card else copy


def kernels_on(card):
    """The kernels of the CPU for tensors on the card."""

    def shim(kernel):
        def run(*args, **kwargs):
            assert all(isinstance(t, OnCard) for t in args if isinstance(t, torch.Tensor))
            return OnCard(kernel(*map(held, args), **kwargs), card)

        return run

    names = ("splat", "gather", "splat_flat", "gather_flat")
    return SimpleNamespace(**{name: shim(getattr(cpu, name)) for name in names})


@contextlib.contextmanager
def pretended(monkeypatch, capacity=2**40):
    """Have a GPU of so many bytes in this context: ``device="cuda"`` fits on it."""
    card = Card(capacity)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "_kernels", lambda device: kernels_on(card) if device.type == "cuda" else cpu)
        patch.setattr(loop, "available_device", lambda wanted: "cuda:0" if wanted.startswith("cuda") else "cpu")
        free = memory.free_bytes
        patch.setattr(memory, "free_bytes", lambda d: free(d) if d == "cpu" else card.capacity - card.live)
        patch.setattr(torch, "Generator", Source)
        with card:
            yield card
