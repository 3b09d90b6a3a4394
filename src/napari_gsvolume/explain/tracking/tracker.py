"""Tracking of a network during its training: aligned components at each epoch, and findings."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InputError
from ...io.atomic import atomic_write
from ...svd.decomposition import effective_rank, stable_rank
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
from ..models.explained_model import Model
from ..models.forward import Inputs
from .records import COLUMNS, Evolution, LayerRecord

ProbeData = Inputs | Callable[[], Inputs]


class Tracker:
    """Tracker of the layers of a model during its training, which leaves model and training unchanged.

    Concepts, values and mean scores are kept for each epoch, and no activations: about ``4 k (features + inputs)``
    bytes for each layer.

    Parameters
    ----------
    model : nn.Module or ExplainedModel
        Analysed in evaluation mode, whatever mode it is in.
    layers : sequence of str, optional
        Names as in ``model.named_modules()``; all that have parameters of their own, if omitted.
    probe_inputs : Tensor, tuple, dict, iterable of these, or a function that returns one
        Inputs of the model, the same for all epochs, in batches. A generator is kept as a list; a function is called
        for each record.
    groups : sequence of str, optional
        Label of each input (subgroup or domain): groups are also decomposed separately, and compared.
    held_out : as `probe_inputs`, optional
        Inputs of the same kind outside the training set, if `probe_inputs` are from it.
    attributes : mapping of str to sequence, optional
        Attributes by name: numbers, booleans or texts, one for each input.
    attention : bool or sequence of str
        Compare attention heads, of all modules or of some; see `attention`.
    k : int
        Number of components of each layer.
    max_samples : int
        Largest number of positions of a layer, drawn once from all inputs together.
    thresholds : Thresholds, optional
    seed : int
        Seed of that draw and of permutations.
    **options
        ``features_axis``, ``output`` and ``memory_limit`` of `activations`.

    Raises
    ------
    InputError
        If `k` is below 1, or an attribute cannot be used.

    Examples
    --------
    >>> import torch
    >>> from napari_gsvolume import explain
    >>> network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3))
    >>> tracker = explain.Tracker(network, None, torch.randn(8, 1, 8, 8), k=2)
    >>> for epoch in range(2):
    ...     _ = tracker.record(epoch)
    >>> tracker.evolution("0").values.shape
    (2, 2)
    """

    def __init__(
        self,
        model: Model,
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
        **options: Any,
    ) -> None:
        check_modes(k)
        self.model, self.layers, self.k = model, layers, k
        self.thresholds = Thresholds() if thresholds is None else thresholds
        self.seed = seed
        self._attention = attention
        self._options = {"max_samples": max_samples, "seed": seed} | options
        self._probe = ProbeInputs(probe_inputs) if held_out is None else ProbeInputs(probe_inputs, held_out)
        self._groups = None if groups is None else np.asarray(groups).astype(str)
        self._attributes = dict(attributes or {})
        for name, values in self._attributes.items():
            check_attribute(values, len(np.asarray(values)), name)
        self._history: list[LayerRecord] = []
        self._latest: dict[str, InputMoments | None] = {}
        # Last known concepts of each layer and group: a component that vanishes keeps its number.
        self._reference: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._heads: dict[float, list[Finding]] = {}  # by epoch

    @property
    def epochs(self) -> int:
        """Number of epochs that are recorded."""
        return len(self._heads)

    @property
    def history(self) -> tuple[LayerRecord, ...]:
        """All records: by epoch, then layer, then group."""
        return tuple(self._history)

    def record(self, epoch: float, model: Model | None = None) -> tuple[LayerRecord, ...]:
        """Record the current state of the model, or another model with the same layers (a checkpoint).

        The random state, the mode of the model and its gradients are unchanged.

        Returns
        -------
        tuple of LayerRecord
            New entries of `history`.

        Raises
        ------
        InputError
            If the epoch is not after the last one, the numbers of groups or attributes and inputs differ, or as in
            `activations` (activations that are not finite, among others). Nothing is recorded then.
        """
        if self._history and epoch <= self._history[-1].epoch:
            raise InputError(f"Epochs ascend: {epoch:g} cannot be recorded after {self._history[-1].epoch:g}.")
        model = self.model if model is None else model
        decomposed = self._probe.decompose(model, self.layers, **self._options)
        inputs, held = self._probe.counts[0], sum(self._probe.counts[1:])
        if self._groups is not None:
            check_labels(self._groups, inputs, "Groups")
        for name, values in self._attributes.items():
            check_attribute(values, inputs, name)
        if (self._attributes or held or self._groups is not None) and inputs + held < FEWEST:
            raise InputError(f"{inputs + held} inputs are too few for a permutation test; give {FEWEST} or more.")
        added: list[LayerRecord] = []
        latest = {}
        for layer, d in decomposed.items():
            records, latest[layer] = self._of_layer(epoch, layer, d, inputs, held)
            added.extend(records)
        heads = self._redundant_heads(model)
        for record in added:
            before = self._reference.get((record.layer, record.group))
            present = record.concepts.any(0)
            self._reference[record.layer, record.group] = (
                record.concepts if before is None else np.where(present, record.concepts, before)
            )
        self._history.extend(added)
        self._latest = latest
        self._heads[float(epoch)] = heads
        return tuple(added)

    def findings(self) -> list[Finding]:
        """Return the findings of the last epoch, and the new concepts of all epochs.

        Persistent findings have the first epoch of their current duration. Tests (attributes, drift, sharpening) are
        made at the last epoch alone, and the probability of any false finding of such a kind is at most
        ``thresholds.alpha``.
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
        options: dict[str, Any] = {"epoch": last, "seed": self.seed}
        if held and probes:
            before = first if len({r.epoch for r in self._history}) > 1 else None
            found += find_sharpening(all_inputs, np.arange(inputs + held) >= inputs, t, first=before, **options)
        if self._groups is not None and probes:
            found += find_drift(probes, self._groups, t, **options)
        if self._attributes and probes:
            found += find_attributes(probes, self._attributes, t, **options)
        return found

    def evolution(self, layer: str, group: str = "") -> Evolution:
        """Return the components of a layer over the epochs, for plots.

        Raises
        ------
        InputError
            If there is no such layer or group, or nothing has been recorded.
        """
        records = self._records(layer, group)
        if not records:
            known = sorted({f"{r.layer} {r.group}".strip() for r in self._history})
            raise InputError(
                f"Nothing is recorded of {f'{layer} {group}'.strip()}; recorded are: {', '.join(known) or 'none yet'}."
            )
        columns = ("epoch", "values", "shares", "to_previous", "to_first", "concepts", "angle", "effective_rank")
        return Evolution(*(np.stack([getattr(r, c) for r in records]) for c in (*columns, "stable_rank", "sharpness")))

    def to_csv(self, path: str | Path) -> None:
        """Write the history as a table: a row for each epoch, layer, group and component.

        Columns are those of `LayerRecord`; ``place`` is the rank of its value in its epoch, from 0.
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
        owners, groups, t = d.places.input, self._groups, self.thresholds
        trained = owners < inputs
        current = PrincipalComponents.of(d, self.k, trained)
        found = find_collapse(layer, current.spectrum, d.features, t, total=current.total, epoch=epoch)
        units = unit_covariance(d)
        if units is not None and not found:  # the units of a collapsed layer are all redundant
            found += find_dead_units(layer, np.sqrt(np.clip(np.diag(units), 0, None)), t, epoch=epoch)
            found += find_redundant_units(layer, units, t, epoch=epoch)
        record = self._align_record(epoch, layer, "", current, int(trained.sum()), findings=tuple(found))
        if (d.places.inputs < 0).any() and not (held or self._attributes or groups is not None):
            return [record], None
        of_inputs = input_moments(d, record.concepts.astype(np.float64), record.shares, inputs + held)
        sharp = sharpness(of_inputs, np.arange(inputs + held) >= inputs) if held else np.nan
        records = [replace(record, means=of_inputs.means[:inputs].astype(np.float32), sharpness=sharp)]
        for group in [] if groups is None else np.unique(groups):
            members = np.flatnonzero(groups == group)
            rows = np.isin(owners, members)
            new = self._align_record(
                epoch, layer, str(group), PrincipalComponents.of(d, self.k, rows), int(rows.sum()), record
            )
            means = input_moments(d, new.concepts.astype(np.float64), new.shares, inputs + held).means[members]
            records.append(replace(new, means=means.astype(np.float32)))
        return records, of_inputs

    def _align_record(
        self,
        epoch: float,
        layer: str,
        group: str,
        current: PrincipalComponents,
        samples: int,
        like: LayerRecord | None = None,
        findings: tuple[Finding, ...] = (),
    ) -> LayerRecord:
        """Return a record with components aligned to those of the previous record; of `like` for the first one."""
        before = self._records(layer, group)
        reference = self._reference.get((layer, group), None if like is None else like.concepts)
        scale, count = np.sqrt(current.total / samples), current.concepts.shape[1]
        if reference is None:
            missing = ((0, 0), (0, min(self.k, len(current.concepts)) - count))
            concepts, shares = np.pad(current.concepts, missing), np.pad(current.shares, missing[1])
        else:
            match = align_components(reference, current.concepts, current.spectrum[:count])
            concepts, shares = match.columns(current.concepts), np.square(match.values(np.sqrt(current.shares)))
        unknown = np.full(len(shares), np.nan)
        to_previous, to_first, angle = unknown, unknown, np.nan
        if before:
            to_previous, to_first = (np.einsum("fk,fk->k", concepts, r.concepts) for r in (before[-1], before[0]))
            both = ((concepts, shares), (before[-1].concepts, before[-1].shares))
            spans = [columns[:, parts >= self.thresholds.energy] for columns, parts in both]
            if all(span.shape[1] for span in spans):
                angle = float(principal_angles(*spans)[-1])
        return LayerRecord(
            float(epoch),
            layer,
            group,
            np.sqrt(shares) * scale,
            shares,
            concepts.astype(np.float32),
            np.empty((0, len(shares)), np.float32),
            to_previous,
            to_first,
            angle,
            float(effective_rank(current.spectrum)),
            float(stable_rank(current.spectrum)),
            findings=findings,
        )

    def _redundant_heads(self, model: Model) -> list[Finding]:
        """Find redundant attention heads of each layer."""
        if not self._attention:
            return []
        layers = None if self._attention is True else list(self._attention)
        return find_similar_heads(model, self._probe, layers, self.thresholds, seed=self.seed)

    def _records(self, layer: str, group: str = "") -> list[LayerRecord]:
        return [r for r in self._history if r.layer == layer and r.group == group]


def _since(epochs: Sequence[float], found: Sequence[bool]) -> float:
    """Return the first epoch of the unbroken run of findings that lasts to the end."""
    breaks = [k for k, present in enumerate(found) if not present]
    return epochs[breaks[-1] + 1 if breaks else 0]
