"""Jacobians without making them, against dense ones in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from helpers.networks_to_explain import MAKE, Network, network, noise
from napari_gsvolume import explain
from napari_gsvolume.explain.decomposition.jacobian import gradients
from napari_gsvolume.explain.models.forward import iterate_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def double(thing):
    if isinstance(thing, torch.Tensor):
        return thing.double() if thing.is_floating_point() else thing
    return tuple(map(double, thing)) if isinstance(thing, tuple) else {n: double(t) for n, t in thing.items()}


def dense(w: Network):
    """Return the Jacobian (output, input) in float64, row by row."""
    model, batch = copy.deepcopy(w.model).double().eval(), double(w.inputs[0])
    point = None

    def put(_, __, output):
        nonlocal point
        point = output.detach().requires_grad_()
        return point

    if w.by is not None:
        dict(model.named_modules())[w.by].register_forward_hook(put)
    else:
        point = next(iterate_tensors(batch)).requires_grad_()
    given = model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
    result = next(iterate_tensors(given)).flatten()
    [rows] = torch.autograd.grad(result, point, torch.eye(len(result), dtype=result.dtype), is_grads_batched=True)
    return rows.flatten(1).numpy()


def degrees(a, b):
    """Return the largest angle between the spans of orthonormal columns."""
    sines = np.linalg.svd(a - b @ (b.T @ a), compute_uv=False)
    return np.degrees(np.arcsin(min(1.0, sines[0])))


@pytest.mark.parametrize("name", MAKE)
def test_every_kind_of_network(name) -> None:
    w = network(name)
    J = dense(w)
    d = explain.jacobian(w.model, w.inputs[0], 6, by=w.by)
    U, s, Vh = np.linalg.svd(J, full_matrices=False)
    np.testing.assert_allclose(d.values, s[:6], rtol=1e-4)
    np.testing.assert_allclose(J @ d.concepts, d.scores * d.values, atol=1e-2 * s[0])
    for k in np.flatnonzero(s[:6] - s[1:7] > 0.05 * s[0]) + 1:  # what is separated from the rest
        assert degrees(d.concepts[:, :k], Vh[:k].T) < 0.1
        assert degrees(d.scores[:, :k], U[:, :k]) < 0.1
    assert d.total == pytest.approx(np.square(J).sum(), rel=0.15)
    assert d.column(0).size == J.shape[1]
    assert d.column(0, "scores").shape == d.sample_shape
    assert (s[:6] ** 2 - d.values**2 <= d.missed + 1e-5 * s[0] ** 2).all()


@pytest.mark.parametrize(("rows", "columns"), [(7, 30), (30, 7), (200, 150)])
def test_spectra_with_clusters_and_gaps(rows, columns) -> None:
    rng = np.random.default_rng(0)
    n = min(rows, columns)
    s = np.sort(np.concatenate([[9.0, 9.0, 9.0, 4.0], np.linspace(3.001, 3, n - 4)]))[::-1]
    U, V = (np.linalg.qr(rng.normal(size=(m, n)))[0] for m in (rows, columns))
    layer = nn.Linear(columns, rows, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(U * s @ V.T))
    d = explain.jacobian(layer, noise(columns).double(), 8)
    assert d.k == min(8, n)
    np.testing.assert_allclose(d.values, s[: d.k], rtol=1e-4)
    assert degrees(d.concepts[:, :4], V[:, :4]) < 0.01
    everything = explain.jacobian(layer, noise(columns).double(), n)
    np.testing.assert_allclose(everything.values, s, rtol=1e-9)
    np.testing.assert_allclose(everything.energy, np.cumsum(s**2) / np.square(s).sum(), rtol=1e-9)
    assert everything.complete


def test_a_small_basis_begins_anew(monkeypatch) -> None:
    monkeypatch.setattr("napari_gsvolume.explain.decomposition.block_krylov._BASIS_BYTES", 0)
    w = network("cnn")
    x = noise(1, 1, 16, 16)
    model = w.model[:5]
    J = dense(Network(model, [x], "", 0, 0))
    d = explain.jacobian(model, x, 4)
    np.testing.assert_allclose(d.values, np.linalg.svd(J, compute_uv=False)[:4], rtol=1e-4)


def test_fewer_modes_than_asked_for() -> None:
    layer = nn.Linear(9, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(noise(8, 2) @ noise(2, 9))
    d = explain.jacobian(layer, noise(9), 5)
    expected = np.linalg.svd(layer.weight.detach().double().numpy(), compute_uv=False)[:2]
    np.testing.assert_allclose(d.values[:2], expected, rtol=1e-5)
    assert d.values[2:].max(initial=0) < 1e-5 * expected[0]


def test_layers() -> None:
    w = network("cnn")
    x = w.inputs[0][:1]
    model = w.model.double().eval()
    x = x.double()
    with torch.no_grad():
        between = model[:3](x)
    first = explain.jacobian(model, x, 3, layer="2")
    np.testing.assert_allclose(
        first.values, np.linalg.svd(dense(Network(model[:3], [x], "", 0, 0)), compute_uv=False)[:3], rtol=1e-4
    )
    assert first.sample_shape == (1, 6, 16, 16)
    last = explain.jacobian(model, x, 3, by="2")
    expected = np.linalg.svd(dense(Network(model[3:], [between], "", 0, 0)), compute_uv=False)[:3]
    np.testing.assert_allclose(last.values, expected, rtol=1e-4)
    assert last.feature_shape == (1, 6, 16, 16)
    middle = explain.jacobian(model, x, 3, by="2", layer="3")
    np.testing.assert_allclose(
        middle.values, np.linalg.svd(dense(Network(model[3:4], [between], "", 0, 0)), compute_uv=False)[:3], rtol=1e-4
    )


class Doubled(torch.autograd.Function):
    """Has no forward derivative and no rule for vmap."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class OneByOne(nn.Module):
    """Cannot be mapped: what it does depends on a number."""

    def forward(self, x):
        y = torch.tanh(x)
        return y * 3 if bool((y > 0).any()) else y


class NoForwardMode(nn.Module):
    def forward(self, x):
        return Doubled.apply(torch.tanh(x))


@pytest.mark.parametrize(("kind", "factor"), [(OneByOne, 3), (NoForwardMode, 2)])
def test_what_cannot_be_mapped_or_has_no_forward_derivative(kind, factor) -> None:
    x = noise(4, 6)
    d = explain.jacobian(kind(), x, 5)
    expected = np.sort(factor * (1 - np.tanh(x.numpy()) ** 2).ravel())[::-1][:5]
    np.testing.assert_allclose(d.values, expected, rtol=1e-4)


@pytest.mark.parametrize("centre", [False, True])
def test_gradients_of_each_sample(centre) -> None:
    w = network("cnn")
    rows = []
    model = copy.deepcopy(w.model).double().eval()
    for batch in w.inputs:
        for one in batch.double():
            x = one[None].requires_grad_()
            rows.append(torch.autograd.grad(model(x)[:, 2].sum(), x)[0].flatten().numpy())
    A = np.stack(rows)
    A = A - A.mean(0) if centre else A
    d = gradients(w.model.train(), w.inputs, lambda y: y[:, 2], 3, centre=centre)
    np.testing.assert_allclose(d.values, np.linalg.svd(A, compute_uv=False)[:3], rtol=1e-4)
    np.testing.assert_allclose(d.scores * d.values, A @ d.concepts, atol=1e-5 * d.values[0])
    assert d.column(0).shape == (1, 16, 16)
    assert w.model.training
    assert all(p.grad is None for p in w.model.parameters())


def test_gradients_by_a_layer() -> None:
    w = network("language_model")
    d = gradients(w.model, w.inputs, lambda out: out.logits[:, -1].logsumexp(-1), 2, by="transformer.wte")
    assert d.feature_shape == (9, 32)
    assert d.samples == 3


def test_what_is_refused(refused) -> None:
    w = network("cnn")
    x = w.inputs[0]
    for call, words in (
        (lambda: explain.jacobian(w.model, x, 0), "1 or more"),
        (lambda: explain.jacobian(w.model, x[..., :5]), "3x1x16x5"),
        (lambda: explain.jacobian(w.model, x * torch.nan), "NaN"),
        (lambda: explain.jacobian(w.model, x, layer="33"), "'33'"),
        (lambda: explain.jacobian(w.model, x, by="33"), "'33'"),
        (lambda: explain.jacobian(w.model, x, layer="0", by="3"), "does not depend"),
        (lambda: explain.jacobian(nn.Embedding(3, 3), torch.tensor([1])), "by="),
        (lambda: gradients(w.model, x, lambda y: y), "one number per sample"),
        (lambda: gradients(w.model, x, lambda y: torch.zeros(3)), "does not depend"),
        (lambda: gradients(w.model, iter([x]), lambda y: y.sum()), "twice"),
    ):
        with refused(ValueError, words):
            call()
