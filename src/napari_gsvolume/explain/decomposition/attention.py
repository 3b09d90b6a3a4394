"""Attention weights of a model's heads, taken as it runs, and what they have in common."""

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
from ...types import Float64Array
from ..models.forward import Inputs, RefusedError, call_model, evaluation_mode, iterate_batches
from ..models.outputs import ForwardCall, LayerOutput, select_modules
from .components import Components, check_modes
from .metrics import redundant_heads
from .sampling import BUDGET, Samples, decompose_steps, draw_priorities

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_IN_SDPA = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention maps of all heads, as one matrix: a row for each input, query and key; a column for each head.

    Attributes
    ----------
    modes : Components
        ``concepts`` (heads, k): how much of each map every head has; ``scores``: these maps, of which
        ``modes.map(mode, input)``, (queries, keys), is one, NaN for queries that were not taken.
    heads : tuple of (str, int)
        Layer and number of the head of each column. A layer that attends several times is "name", "name#2", ...
    similarity : ndarray, (heads, heads)
        Cosine of the angle between the maps of two heads over all inputs: 1 for heads that do the same, and never
        below 0.
    entropy : ndarray, (heads,)
        Of the weights of a query over its keys, mean over queries, in nats: 0 looks at one key, log(keys) at all alike
        (K. Clark et al., "What does BERT look at?", BlackboxNLP 2019).
    """

    modes: Components
    heads: tuple[tuple[str, int], ...]
    similarity: Float64Array
    entropy: Float64Array

    def redundant(self, threshold: float = 0.95) -> list[tuple[int, int, float]]:
        """Return pairs of columns whose similarity is at least that, the most similar first; see `redundant_heads`."""
        return redundant_heads(self.similarity, threshold)


def attention(
    model: nn.Module,
    inputs: Inputs,
    k: int = 8,
    *,
    layers: Sequence[str] | None = None,
    max_queries: int = 256,
    seed: int = 0,
    budget: int = BUDGET,
) -> Attention:
    """Decompose the attention maps of a model, stacked over heads and layers.

    Seen are nn.MultiheadAttention, everything that calls ``scaled_dot_product_attention`` (whose weights are computed
    again from its queries and keys, with mask, causality, scale and grouped heads), and every softmax along the last of
    four axes, (B, heads, queries, keys), which attention written out has. Compiled and scripted modules are not seen.

    Parameters
    ----------
    model, inputs, seed, budget
        As of `activations`.
    k : int
        How many modes; fewer come back where there are fewer heads.
    layers : sequence of str, optional
        Only attention in these modules, or in modules inside of them.
    max_queries : int
        Of longer sequences at most so many queries, drawn by the seed, are taken, each with all of its keys.

    Raises
    ------
    ValueError
        If no attention is seen (in these layers), its maps are of several sizes (choose layers then), there are NaN in
        them; or as of `activations`.
    """
    check_modes(k)
    if max_queries < 1:
        raise InputError(f"At least one query is needed; max_queries is {max_queries}.")
    names = None if layers is None else list(select_modules(model, layers))
    stacked = Samples("attention", k, False, None, seed)
    heads: list[tuple[str, int]] = []
    entropy = _Entropy()

    def run(_: Collection[str], take: Callable[[Samples, LayerOutput], None]) -> Iterator[None]:
        first, first_pass = 0, stacked.samples == 0
        for number, batch in enumerate(iterate_batches(inputs)):
            now = ForwardCall(batch, first)
            with (
                evaluation_mode(model, seed + number),
                torch.no_grad(),
                _Watch(model, names, max_queries, seed) as watch,
            ):
                call_model(model, batch)
            heads[:] = [(layer, head) for layer, maps in watch.maps for head in range(maps.shape[1])]
            maps = watch.stacked()  # (B, heads, queries taken, keys)
            if first_pass:
                entropy.take(maps)
            count, of, keys = len(maps), maps.shape[1], maps.shape[3]
            queries = watch.queries(watch.length)
            positions = (queries[:, None] * keys + np.arange(keys)).ravel()
            rows = maps.permute(0, 2, 3, 1).reshape(count, -1, of)
            grid = (watch.length, keys)
            take(stacked, LayerOutput(rows, grid, (math.nan, math.nan), *now.numbers("", count), positions))
            first += now.count
            yield

    for step in decompose_steps(inputs, {"attention": stacked}, run, budget, False):
        last = step
    assert last.result is not None
    gram = stacked.gram
    norms = np.sqrt(gram.diagonal())
    norms = np.where(norms > 0, norms, 1.0)
    return Attention(last.result["attention"], tuple(heads), gram / np.outer(norms, norms), entropy.mean())


class _Entropy:
    """The mean entropy of the weights of each head."""

    def __init__(self) -> None:
        self._sum: Float64Array | float = 0.0
        self._queries = 0

    def take(self, maps: Tensor) -> None:
        """Take in maps (B, heads, queries, keys)."""
        self._sum = self._sum + torch.special.entr(maps.clamp_min(0)).sum((0, 2, 3)).double().cpu().numpy()
        self._queries += maps.shape[0] * maps.shape[2]

    def mean(self) -> Float64Array:
        """Return it, (heads,)."""
        return np.asarray(self._sum / self._queries)


class _Watch(TorchFunctionMode):
    """Within, the attention weights of a model are seen, (B, heads, queries, keys) each."""

    def __init__(self, model: nn.Module, names: list[str] | None, max_queries: int, seed: int) -> None:
        super().__init__()
        self.maps: list[tuple[str, Tensor]] = []
        self.length = 0
        self._model, self._names, self._max_queries, self._seed = model, names, max_queries, seed
        self._inside: list[str] = []  # modules that are being called
        self._calls: Counter[str] = Counter()
        self._sizes: dict[tuple[int, int, int], str] = {}  # batch, queries, keys: where first met
        self._stack = ExitStack()

    def __enter__(self) -> _Watch:
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
        """See what is attention; call everything."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            return self._multi_head(func, args, kwargs)
        if func is functional.scaled_dot_product_attention and self._wanted():
            given = dict(zip(_IN_SDPA, args, strict=False)) | kwargs
            self._see(given["query"].shape[-2], lambda queries: _weights(queries, **given))
        result = func(*args, **kwargs)
        if func in _SOFTMAX and isinstance(result, Tensor) and result.ndim == 4 and self._wanted():
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, 3):
                self._see(result.shape[-2], lambda queries: result[..., queries, :])
        return result

    def queries(self, length: int) -> NDArray[np.int64]:
        """Return which queries of so many are taken."""
        drawn = draw_priorities(self._seed, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64), length)[0]
        return np.sort(np.argsort(drawn, kind="stable")[: self._max_queries])

    def stacked(self) -> Tensor:
        """Return all maps, (B, heads of all layers, queries taken, keys)."""
        if not self.maps:
            where = "the model" if self._names is None else f"the layers {', '.join(map(repr, self._names))}"
            raise InputError(f"No attention was seen in {where}.")
        if len(self._sizes) > 1:
            sizes = ", ".join(f"{q} x {s} ({name})" for (_, q, s), name in self._sizes.items())
            raise InputError(
                f"Attention maps of several sizes cannot be stacked; choose layers of one of them: {sizes}."
            )
        return torch.cat([maps for _, maps in self.maps], 1)

    def _multi_head(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not self._wanted():
            return func(*args, **kwargs)
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        needed, averaged = bound.arguments["need_weights"], bound.arguments["average_attn_weights"]
        bound.arguments |= {"need_weights": True, "average_attn_weights": False}
        result, weights = func(*bound.args, **bound.kwargs)
        each = weights if weights.ndim == 4 else weights[None]
        self._see(each.shape[-2], lambda queries: each[..., queries, :])
        if not needed:
            return result, None
        return result, weights.mean(-3) if averaged else weights

    def _wanted(self) -> bool:
        inside = self._inside[-1] if self._inside else ""
        return self._names is None or any(
            not name or inside == name or inside.startswith(f"{name}.") for name in self._names
        )

    def _see(self, length: int, weights: Callable[[Tensor], Tensor]) -> None:
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
    """Return the weights that scaled_dot_product_attention gives the keys for some queries, (..., queries, keys).

    Queries that may look at no key have the weights 0.
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
