"""Attention maps of all heads of a model, recorded as it runs, and their singular value decomposition."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...errors import InputError
from ...progress import Budget, finish
from ...types import Float64Array
from ..models.explained_model import ExplainedModel, Model
from ..models.forward import Inputs, RefusedError
from ..models.outputs import LayerOutput
from .components import Components, check_modes
from .sampling import MEMORY_LIMIT, Samples, decompose_steps, draw_priorities

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_IN_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention maps of all heads as one matrix: a row per input, query and key; a column per head.

    Attributes
    ----------
    modes : Components
        ``concepts`` (heads, k): weight of each mode in the map of each head; ``scores``: maps of the modes;
        ``modes.map(mode, input)`` is one of them, (queries, keys), NaN for queries that were not sampled.
    heads : tuple of (str, int)
        Layer and head number of each column. A layer that attends several times is "name", "name#2", ...
    similarity : ndarray, (heads, heads)
        Cosine of the angle between the maps of two heads over all inputs: 1 for equal maps, and never below 0.
    entropy : ndarray, (heads,)
        Entropy of the weights of a query over its keys, mean over queries, in nats: 0 for a single key, log(keys) for
        uniform attention [1]_.

    References
    ----------
    .. [1] K. Clark et al., "What does BERT look at? An analysis of BERT's attention", BlackboxNLP 2019.
    """

    modes: Components
    heads: tuple[tuple[str, int], ...]
    similarity: Float64Array
    entropy: Float64Array


def attention(
    model: Model,
    inputs: Inputs,
    k: int = 8,
    *,
    layers: Sequence[str] | None = None,
    max_queries: int = 256,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> Attention:
    """Decompose the attention maps of a model, stacked over heads and layers.

    Recorded are nn.MultiheadAttention, all calls of ``scaled_dot_product_attention`` (weights are computed again
    from queries and keys, with mask, causality, scale and grouped heads), and every softmax along the last of four
    axes, (B, heads, queries, keys), as in attention that is written out. Compiled and scripted modules are not seen.

    Parameters
    ----------
    model, inputs, seed, memory_limit
        As in `activations`.
    k : int
        Number of modes; fewer are returned if there are fewer heads.
    layers : sequence of str, optional
        Modules to which the analysis is restricted, with the modules inside them.
    max_queries : int
        Largest number of queries; of longer sequences a random subset is used, each query with all of its keys.

    Returns
    -------
    Attention

    Raises
    ------
    InputError
        If there is no attention (in these layers), its maps differ in size (select layers then), or hold NaN; or as in
        `activations`.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> found = explain.attention(layer, torch.randn(2, 5, 8), k=2)
    >>> found.heads, found.similarity.shape
    ((('self_attn', 0), ('self_attn', 1)), (2, 2))
    """
    check_modes(k)
    if max_queries < 1:
        raise InputError(f"At least one query is needed; max_queries is {max_queries}.")
    explained = ExplainedModel.of(model)
    names = None if layers is None else list(explained.modules(layers))
    stacked = Samples("attention", k, False, None, seed)
    heads: list[tuple[str, int]] = []
    entropy = _Entropy()

    def run(_: Collection[str], take: Callable[[Samples, LayerOutput], None]) -> Iterator[None]:
        first_pass = stacked.samples == 0
        recorders = explained.run_batches(
            inputs, seed, lambda _: _AttentionRecorder(explained.model, names, max_queries, seed)
        )
        for current, recorder in recorders:
            heads[:] = [(layer, head) for layer, maps in recorder.maps for head in range(maps.shape[1])]
            maps = recorder.stacked()  # (B, heads, sampled queries, keys)
            if first_pass:
                entropy.take(maps)
            count, columns, keys = len(maps), maps.shape[1], maps.shape[3]
            queries = recorder.queries(recorder.length)
            positions = (queries[:, None] * keys + np.arange(keys)).ravel()
            rows = maps.permute(0, 2, 3, 1).reshape(count, -1, columns)
            grid = (recorder.length, keys)
            take(stacked, LayerOutput(rows, grid, (math.nan, math.nan), *current.numbers("", count), positions))
            yield

    steps = decompose_steps(inputs, {"attention": stacked}, run, memory_limit, False, Budget())
    modes = finish(steps)["attention"]
    gram = stacked.gram
    norms = np.sqrt(gram.diagonal())
    norms = np.where(norms > 0, norms, 1.0)
    return Attention(modes, tuple(heads), gram / np.outer(norms, norms), entropy.mean())


class _Entropy:
    """Mean entropy of the weights of each head."""

    def __init__(self) -> None:
        self._sum: Float64Array | float = 0.0
        self._queries = 0

    def take(self, maps: Tensor) -> None:
        """Take in maps (B, heads, queries, keys)."""
        self._sum = self._sum + torch.special.entr(maps.clamp_min(0)).sum((0, 2, 3)).double().cpu().numpy()
        self._queries += maps.shape[0] * maps.shape[2]

    def mean(self) -> Float64Array:
        """Return the mean entropy, (heads,)."""
        return np.asarray(self._sum / self._queries)


class _AttentionRecorder(TorchFunctionMode):
    """Context in which the attention maps of a model are recorded, (B, heads, queries, keys) each."""

    def __init__(self, model: nn.Module, names: list[str] | None, max_queries: int, seed: int) -> None:
        super().__init__()
        self.maps: list[tuple[str, Tensor]] = []
        self.length = 0
        self._model, self._names, self._max_queries, self._seed = model, names, max_queries, seed
        self._inside: list[str] = []  # modules that are being called
        self._calls: Counter[str] = Counter()
        self._sizes: dict[tuple[int, int, int], str] = {}  # batch, queries, keys: layer where first met
        self._stack = ExitStack()

    def __enter__(self) -> _AttentionRecorder:
        for name, module in self._model.named_modules():
            before = module.register_forward_pre_hook(lambda _, __, name=name: self._inside.append(name))
            after = module.register_forward_hook(lambda _, __, ___: (self._inside.pop(), None)[1])
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record attention, and call the function."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._multi_head(func, args, kwargs)
        if func is functional.scaled_dot_product_attention and self._is_selected():
            given = dict(zip(_IN_SDPA, args, strict=False)) | kwargs
            self._record(given["query"].shape[-2], lambda queries: _weights(queries, **given))
        result = func(*args, **kwargs)
        if func in _SOFTMAX and isinstance(result, Tensor) and result.ndim == 4 and self._is_selected():
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, 3):
                self._record(result.shape[-2], lambda queries: result[..., queries, :])
        return result

    def queries(self, length: int) -> NDArray[np.int64]:
        """Return the sampled queries of a sequence."""
        drawn = draw_priorities(self._seed, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), length)[0]
        return np.sort(np.argsort(drawn, kind="stable")[: self._max_queries])

    def stacked(self) -> Tensor:
        """Return all maps, (B, heads of all layers, sampled queries, keys)."""
        if not self.maps:
            where = "the model" if self._names is None else f"the layers {', '.join(map(repr, self._names))}"
            raise InputError(f"No attention was seen in {where}.")
        if len(self._sizes) > 1:
            sizes = ", ".join(f"{q} x {s} ({name})" for (_, q, s), name in self._sizes.items())
            raise InputError(f"Attention maps of several sizes cannot be stacked; select layers of one size: {sizes}.")
        return torch.cat([maps for _, maps in self.maps], 1)

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not self._is_selected():
            return func(*args, **kwargs)
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        needed, averaged = bound.arguments["need_weights"], bound.arguments["average_attn_weights"]
        bound.arguments |= {"need_weights": True, "average_attn_weights": False}
        result, weights = func(*bound.args, **bound.kwargs)
        each = weights if weights.ndim == 4 else weights[None]
        self._record(each.shape[-2], lambda queries: each[..., queries, :])
        if not needed:
            return result, None
        return result, weights.mean(-3) if averaged else weights

    def _is_selected(self) -> bool:
        inside = self._inside[-1] if self._inside else ""
        return self._names is None or any(
            not name or inside == name or inside.startswith(f"{name}.") for name in self._names
        )

    def _record(self, length: int, weights: Callable[[Tensor], Tensor]) -> None:
        inside = self._inside[-1] if self._inside else ""
        self._calls[inside] += 1
        label = inside if self._calls[inside] == 1 else f"{inside}#{self._calls[inside]}"
        maps = weights(torch.from_numpy(self.queries(length))).detach()
        maps = maps.float() if maps.dtype not in (torch.float32, torch.float64) else maps
        maps = maps[:, None] if maps.ndim == 3 else maps.flatten(0, -4)  # (B, heads, queries, keys)
        if not bool(torch.isfinite(maps).all()):
            raise RefusedError(f"The attention in {label!r} holds NaN or infinite weights.")
        self.length = length
        self._sizes.setdefault((len(maps), length, maps.shape[-1]), label)
        self.maps.append((label, maps.clone()))


def _weights(
    queries: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention weights of scaled_dot_product_attention for some queries, (..., queries, keys).

    Weights of queries all of whose keys are masked are 0.
    """
    L, S = query.shape[-2], key.shape[-2]
    queries = queries.to(query.device)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = (query[..., queries, :].float() @ key.float().transpose(-2, -1)) * factor
    if is_causal:
        logits = logits.masked_fill(torch.arange(S, device=query.device) > queries[:, None], -math.inf)
    if attn_mask is not None:
        mask = attn_mask.expand(*attn_mask.shape[:-2], L, S)[..., queries, :]
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask.float()
    return logits.softmax(-1).masked_fill((logits == -math.inf).all(-1, keepdim=True), 0.0)
