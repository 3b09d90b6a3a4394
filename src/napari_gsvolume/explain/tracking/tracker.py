"""A network followed while it learns: its components at each epoch, which is which, and what is found in them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from ...errors import InputError
from ...io.atomic import atomic_write
from ...svd.decomposition import effective_rank, stable_rank
from ...types import Float64Array
from ..decomposition.alignment import align_components, principal_angles
from ..decomposition.components import Components, check_modes
from ..findings.attention_heads import find_similar_heads
from ..findings.finding import Finding, Thresholds
from ..findings.group_comparisons import find_attributes, find_drift, find_sharpening, sharpness
from ..findings.input_moments import InputMoments
from ..findings.layer_detectors import find_collapse, find_dead_units, find_new_concepts, find_redundant_units
from ..findings.permutation_tests import FEWEST, check_attribute
from ..findings.probe_inputs import (
    SAMPLES,
    PrincipalComponents,
    ProbeInputs,
    check_labels,
    input_moments,
    unit_covariance,
)
from ..models.forward import Inputs

ProbeData = Inputs | Callable[[], Inputs]
COLUMNS = (
    "epoch", "layer", "group", "component", "place", "value", "share", "cosine_to_previous", "cosine_to_first", "angle",
    "effective_rank", "stable_rank", "sharpness",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LayerRecord:
    """One layer at one epoch, of all inputs or of those of one group.

    Components keep their places from epoch to epoch, whatever their values become (see `alignment`).

    Attributes
    ----------
    epoch : float
    layer : str
    group : str
        "" for all inputs.
    values : ndarray, (k,)
        Singular values of the activations about their mean, divided by the root of the number of samples: standard
        deviations along the concepts. 0 where there is no such component.
    shares : ndarray, (k,)
        Part of the layer's variance.
    concepts : ndarray of float32, (features, k)
        Unit columns.
    means : ndarray of float32, (inputs, k)
        Mean coordinate of each input of the group; no rows where a layer does not tell inputs apart.
    to_previous, to_first : ndarray, (k,)
        Cosines with the same component one record before, and at the first one; NaN in that.
    angle : float
        Largest principal angle, degrees, between the components that count now and those that did one record before.
    effective_rank, stable_rank : float
        Of the activations about their mean.
    sharpness : float
        See `comparisons.sharpness`; NaN where nothing is held out.
    findings : tuple of Finding
        What needs no other epoch or layer: collapse, dead and redundant units.
    """

    epoch: float
    layer: str
    group: str
    values: Float64Array
    shares: Float64Array
    concepts: NDArray[np.float32]
    means: NDArray[np.float32]
    to_previous: Float64Array
    to_first: Float64Array
    angle: float
    effective_rank: float
    stable_rank: float
    sharpness: float = np.nan
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, eq=False)
class Evolution:
    """One layer over all epochs: what `LayerRecord` has, stacked.

    Attributes
    ----------
    epochs : ndarray, (epochs,)
    values, shares, to_previous, to_first : ndarray, (epochs, k)
    concepts : ndarray of float32, (epochs, features, k)
    angles, effective_ranks, stable_ranks, sharpness : ndarray, (epochs,)
    """

    epochs: Float64Array
    values: Float64Array
    shares: Float64Array
    to_previous: Float64Array
    to_first: Float64Array
    concepts: NDArray[np.float32]
    angles: Float64Array
    effective_ranks: Float64Array
    stable_ranks: Float64Array
    sharpness: Float64Array


class Tracker:
    """Follows the layers of a model through its training, without changing either.

    What is kept of an epoch are concepts, values and mean scores, not activations: for each layer about
    ``4 k (features + inputs)`` bytes.

    Parameters
    ----------
    model : nn.Module
        Looked at in evaluation mode, whatever mode it is in.
    layers : sequence of str, optional
        Names as in ``model.named_modules()``; all that have parameters of their own when omitted.
    probe_inputs : Tensor, tuple, dict, iterable of these, or a function that returns one
        What the model is called with: always the same, in batches. A generator is kept as a list; a function is called
        each time.
    groups : sequence of str, optional
        A label for each input (subgroup or domain): groups are decomposed by themselves too, and compared.
    held_out : as `probe_inputs`, optional
        Inputs of the same kind that the model is not trained on, where `probe_inputs` are some that it is trained on.
    attributes : mapping of str to sequence, optional
        By name, numbers, booleans or texts, one for each input.
    attention : bool or sequence of str
        Whether attention heads are compared, of all modules or in some; see `heads.attention`.
    k : int
        Components of a layer that are followed.
    max_samples : int
        Positions of a layer that are looked at, drawn once from all inputs together.
    thresholds : Thresholds, optional
    seed : int
        Of that draw and of permutations.
    **more
        ``features_axis``, ``output`` and ``budget`` of `activations`.

    Raises
    ------
    ValueError
        If `k` is below 1, or an attribute cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None,
        probe_inputs: ProbeData,
        groups: Sequence[Any] | None = None,
        *,
        held_out: ProbeData | None = None,
        attributes: Mapping[str, ArrayLike] | None = None,
        attention: bool | Sequence[str] = False,
        k: int = 16,
        max_samples: int = SAMPLES,
        thresholds: Thresholds | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        check_modes(k)
        self.model, self.layers, self.k = model, layers, k
        self.thresholds = Thresholds() if thresholds is None else thresholds
        self.seed = seed
        self._attention = attention
        self._more = {"max_samples": max_samples, "seed": seed} | more
        self._probe = ProbeInputs(probe_inputs) if held_out is None else ProbeInputs(probe_inputs, held_out)
        self._groups = None if groups is None else np.asarray(groups).astype(str)
        self._attributes = dict(attributes or {})
        for name, values in self._attributes.items():
            check_attribute(values, len(np.asarray(values)), name)
        self._history: list[LayerRecord] = []
        self._latest: dict[str, InputMoments | None] = {}
        # The last known concepts of each layer and group: a component that vanishes keeps its place.
        self._reference: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._heads: dict[float, list[Finding]] = {}  # by epoch

    @property
    def history(self) -> tuple[LayerRecord, ...]:
        """All records: by epoch, then layer, then group."""
        return tuple(self._history)

    def record(self, epoch: float, model: nn.Module | None = None) -> tuple[LayerRecord, ...]:
        """Take in the present state of the model, or another model of the same layers (a checkpoint).

        Random numbers, the model's mode and its gradients are as before afterwards.

        Returns
        -------
        tuple of LayerRecord
            What has been added to `history`.

        Raises
        ------
        ValueError
            If the epoch is not after the last one, groups or attributes are not as many as inputs, or as of
            `activations`: activations that are not finite among others. Nothing is recorded then.
        """
        if self._history and epoch <= self._history[-1].epoch:
            raise InputError(f"Epochs ascend: {epoch:g} cannot be recorded after {self._history[-1].epoch:g}.")
        model = self.model if model is None else model
        decomposed = self._probe.decomposed(model, self.layers, **self._more)
        inputs, held = self._probe.counts[0], sum(self._probe.counts[1:])
        if self._groups is not None:
            check_labels(self._groups, inputs, "Groups")
        for name, values in self._attributes.items():
            check_attribute(values, inputs, name)
        if (self._attributes or held or self._groups is not None) and inputs + held < FEWEST:
            raise InputError(f"{inputs + held} inputs are too few to tell anything from chance; give {FEWEST} or more.")
        added: list[LayerRecord] = []
        latest = {}
        for layer, d in decomposed.items():
            records, latest[layer] = self._of_layer(epoch, layer, d, inputs, held)
            added.extend(records)
        heads = self._alike(model)
        for record in added:
            before = self._reference.get((record.layer, record.group))
            there = record.concepts.any(0)
            self._reference[record.layer, record.group] = (
                record.concepts if before is None else np.where(there, record.concepts, before)
            )
        self._history.extend(added)
        self._latest = latest
        self._heads[float(epoch)] = heads
        return tuple(added)

    def findings(self) -> list[Finding]:
        """Return what is found by now: of the last epoch, and new concepts of all epochs.

        What may last has the epoch since when it does without a break. What involves chance (attributes, drift,
        sharpening) is tested at the last epoch alone, and the probability of any false finding of such a kind is at
        most ``thresholds.alpha``.
        """
        if not self._history:
            return []
        t, last = self.thresholds, self._history[-1].epoch
        found: list[Finding] = []
        first: dict[str, float] = {}
        for layer in self._latest:
            records = self._records(layer)
            first[layer] = records[0].sharpness
            epochs = [r.epoch for r in records]
            for f in records[-1].findings:
                same = [any(g.kind == f.kind for g in r.findings) for r in records]
                found.append(replace(f, epoch=_since(epochs, same)))
            columns = [r.concepts for r in records], [r.shares for r in records]
            found += find_new_concepts(layer, epochs, *columns, t)
        for head in self._heads[last]:
            same = [any(f.layer == head.layer for f in heads) for heads in self._heads.values()]
            found.append(replace(head, epoch=_since(list(self._heads), same)))
        all_inputs = {layer: of_inputs for layer, of_inputs in self._latest.items() if of_inputs is not None}
        inputs, held = self._probe.counts[0], sum(self._probe.counts[1:])
        probes = {layer: of_inputs.first(inputs) for layer, of_inputs in all_inputs.items()}
        more: dict[str, Any] = {"epoch": last, "seed": self.seed}
        if held and probes:
            before = first if len({r.epoch for r in self._history}) > 1 else None
            found += find_sharpening(all_inputs, np.arange(inputs + held) >= inputs, t, first=before, **more)
        if self._groups is not None and probes:
            found += find_drift(probes, self._groups, t, **more)
        if self._attributes and probes:
            found += find_attributes(probes, self._attributes, t, **more)
        return found

    def evolution(self, layer: str, group: str = "") -> Evolution:
        """Return a layer's components over the epochs, for plots.

        Raises
        ------
        ValueError
            If there is no such layer or group, or nothing has been recorded.
        """
        records = self._records(layer, group)
        if not records:
            known = sorted({f"{r.layer} {r.group}".strip() for r in self._history})
            raise InputError(
                f"Nothing is recorded of {f'{layer} {group}'.strip()}; there is {', '.join(known) or 'nothing yet'}."
            )
        columns = ("epoch", "values", "shares", "to_previous", "to_first", "concepts", "angle", "effective_rank")
        return Evolution(*(np.stack([getattr(r, c) for r in records]) for c in (*columns, "stable_rank", "sharpness")))

    def to_csv(self, path: str | Path) -> None:
        """Write the history as a table: a row for each epoch, layer, group and component.

        Columns are those of `LayerRecord`; ``place`` is the component's among the values of its epoch, from 0.
        Cosines and angles of the first epoch are empty.

        Raises
        ------
        OSError
            If the file cannot be written; one that was there is left as it was.
        """
        with atomic_write(Path(path)) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for r in self._history:
                places = np.argsort(np.argsort(-r.values, kind="stable"))
                for j in np.flatnonzero(r.concepts.any(0)):
                    numbers = [r.values[j], r.shares[j], r.to_previous[j], r.to_first[j], r.angle]
                    row = [*numbers, r.effective_rank, r.stable_rank, r.sharpness]
                    cells = ["" if np.isnan(x) else float(x) for x in row]
                    writer.writerow([f"{r.epoch:g}", r.layer, r.group, j, places[j], *cells])

    def _of_layer(
        self, epoch: float, layer: str, d: Components, inputs: int, held: int
    ) -> tuple[list[LayerRecord], InputMoments | None]:
        """Return the records of a layer, that of all inputs first, and the moments of the inputs, held out too."""
        assert d.places is not None
        whose, groups, t = d.places.input, self._groups, self.thresholds
        trained = whose < inputs
        now = PrincipalComponents.of(d, self.k, trained)
        found = find_collapse(layer, now.spectrum, d.features, t, total=now.total, epoch=epoch)
        units = unit_covariance(d)
        if units is not None and not found:  # of a layer that has collapsed, all units are alike
            found += find_dead_units(layer, np.sqrt(np.clip(np.diag(units), 0, None)), t, epoch=epoch)
            found += find_redundant_units(layer, units, t, epoch=epoch)
        record = self._aligned(epoch, layer, "", now, int(trained.sum()), findings=tuple(found))
        if (d.places.inputs < 0).any() and not (held or self._attributes or groups is not None):
            return [record], None
        of_inputs = input_moments(d, record.concepts.astype(np.float64), record.shares, inputs + held)
        sharp = sharpness(of_inputs, np.arange(inputs + held) >= inputs) if held else np.nan
        records = [replace(record, means=of_inputs.means[:inputs].astype(np.float32), sharpness=sharp)]
        for group in [] if groups is None else np.unique(groups):
            members = np.flatnonzero(groups == group)
            rows = np.isin(whose, members)
            new = self._aligned(
                epoch, layer, str(group), PrincipalComponents.of(d, self.k, rows), int(rows.sum()), record
            )
            means = input_moments(d, new.concepts.astype(np.float64), new.shares, inputs + held).means[members]
            records.append(replace(new, means=means.astype(np.float32)))
        return records, of_inputs

    def _aligned(
        self,
        epoch: float,
        layer: str,
        group: str,
        now: PrincipalComponents,
        samples: int,
        like: LayerRecord | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> LayerRecord:
        """Return a record whose components have the places of those one record before, or at first of `like`."""
        before = self._records(layer, group)
        reference = self._reference.get((layer, group), None if like is None else like.concepts)
        scale, count = np.sqrt(now.total / samples), now.concepts.shape[1]
        if reference is None:
            missing = ((0, 0), (0, min(self.k, len(now.concepts)) - count))
            concepts, shares = np.pad(now.concepts, missing), np.pad(now.shares, missing[1])
        else:
            match = align_components(reference, now.concepts, now.spectrum[:count])
            concepts, shares = match.columns(now.concepts), np.square(match.values(np.sqrt(now.shares)))
        unknown = np.full(len(shares), np.nan)
        to_previous, to_first, angle = unknown, unknown, np.nan
        if before:
            to_previous, to_first = (np.einsum("fk,fk->k", concepts, r.concepts) for r in (before[-1], before[0]))
            both = ((concepts, shares), (before[-1].concepts, before[-1].shares))
            spans = [columns[:, parts >= self.thresholds.energy] for columns, parts in both]
            if all(span.shape[1] for span in spans):
                angle = float(principal_angles(*spans)[-1])
        return LayerRecord(
            float(epoch), layer, group, np.sqrt(shares) * scale, shares, concepts.astype(np.float32),
            np.empty((0, len(shares)), np.float32), to_previous, to_first, angle,
            float(effective_rank(now.spectrum)), float(stable_rank(now.spectrum)), findings=findings,
        )  # fmt: skip

    def _alike(self, model: nn.Module) -> list[Finding]:
        """Return the heads that attend alike, of each layer."""
        if not self._attention:
            return []
        chosen = None if self._attention is True else list(self._attention)
        return find_similar_heads(model, self._probe, chosen, self.thresholds, seed=self.seed)

    def _records(self, layer: str, group: str = "") -> list[LayerRecord]:
        return [r for r in self._history if r.layer == layer and r.group == group]


def _since(epochs: Sequence[float], found: Sequence[bool]) -> float:
    """Return since which epoch something has been found without a break; it is at the last one."""
    breaks = [k for k, there in enumerate(found) if not there]
    return epochs[breaks[-1] + 1 if breaks else 0]
