"""Activations of networks of every kind, against dense decompositions of what plain hooks see."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.dense_svd import assert_is_svd
from helpers.long_runs import collect
from helpers.networks_to_explain import MAKE, cnn, network, noise, super_resolution
from napari_gsvolume import explain
from napari_gsvolume.explain.decomposition.activations import activation_steps
from napari_gsvolume.progress import Budget

pytestmark = pytest.mark.usefixtures("one_thread")


def seen(model, inputs, layer, axis):
    """Return what a layer gives, (samples, features), in evaluation mode."""
    rows = []

    def see(_, __, output):
        tensor = output[0] if isinstance(output, tuple) else output
        rows.append(tensor.detach().movedim(axis, -1).flatten(0, -2).double().numpy().copy())

    was = model.training
    handle = dict(model.named_modules())[layer].register_forward_hook(see)
    model.eval()
    with torch.no_grad():
        for batch in inputs:
            model(**batch) if isinstance(batch, dict) else model(*batch) if isinstance(batch, tuple) else model(batch)
    handle.remove()
    model.train(was)
    return np.concatenate(rows)


class Parts(nn.Module):
    """Gives a tuple, is called twice in a pass, and draws random numbers if asked to."""

    def __init__(self, noisy=False):
        super().__init__()
        self.shared, self.noisy, self.unused = nn.Linear(4, 4), noisy, nn.Linear(2, 2)

    def forward(self, x):
        if self.noisy:
            x = x + torch.randn_like(x)
        return self.shared(self.shared(x)), "and text"


@pytest.mark.parametrize("name", MAKE)
def test_every_kind_of_network(name) -> None:
    w = network(name)
    axis = 1 if name in ("cnn", "unet", "super_resolution") else -1
    A = seen(w.model, w.inputs, w.layer, axis)
    d = explain.activations(w.model, w.inputs, [w.layer], k=4)[w.layer]
    assert (d.features, d.layer, d.samples) == (w.features, w.layer, w.samples)
    assert_is_svd(d, A, 1e-6)
    assert d.complete
    every = explain.activations(w.model, w.inputs, k=2)
    np.testing.assert_allclose(every[w.layer].values, d.values[:2])
    called = {m for m, module in w.model.named_modules() if list(module.parameters(recurse=False))}
    assert set(every) <= called


class TestMemory:
    def test_kept_or_run_again(self) -> None:
        w = network("cnn")
        kept = explain.activations(w.model, w.inputs, k=5)
        again = explain.activations(w.model, w.inputs, k=5, memory_limit=1000)
        for layer, d in kept.items():
            np.testing.assert_array_equal(d.scores, again[layer].scores)
            np.testing.assert_array_equal(d.places.piece, again[layer].places.piece)

    def test_one_pass_is_enough_for_an_iterator_if_it_fits(self, refused) -> None:
        w = network("cnn")
        once = explain.activations(w.model, iter(w.inputs), [w.layer])[w.layer]
        np.testing.assert_array_equal(once.scores, explain.activations(w.model, w.inputs, [w.layer])[w.layer].scores)
        with refused(ValueError, "twice", "max_samples"):
            explain.activations(w.model, iter(w.inputs), [w.layer], memory_limit=10)

    def test_what_changes_from_pass_to_pass_is_noticed(self, refused) -> None:
        class Changing(list):
            def __iter__(self):
                self.append(noise(3, 1, 16, 16, seed=len(self)))
                return super().__iter__()

        with refused(ValueError, "second pass"):
            explain.activations(network("cnn").model, Changing(), ["3"], memory_limit=10)

    def test_steps(self) -> None:
        w = network("cnn")
        steps, result = collect(activation_steps(w.model, w.inputs, [w.layer], memory_limit=10))
        assert [s.batch for s in steps] == [1, 2, 3, 4]
        assert [s.fraction for s in steps] == [0.25, 0.5, 0.75, 1.0]
        assert list(result) == [w.layer]

    def test_a_run_that_is_stopped_has_the_batches_so_far(self) -> None:
        w = network("cnn")
        for limit in (10, 2**30):
            steps, result = collect(
                activation_steps(w.model, w.inputs, [w.layer], memory_limit=limit, budget=Budget(stop=lambda: True))
            )
            assert max(s.batch for s in steps) <= 2
            expected = explain.activations(w.model, w.inputs[:1], [w.layer])[w.layer]
            np.testing.assert_array_equal(result[w.layer].scores, expected.scores)


class TestSampling:
    def test_it_depends_on_the_seed_and_not_on_batches(self) -> None:
        w = network("cnn")
        whole = torch.cat(w.inputs)

        def taken(inputs, seed=0):
            return explain.activations(w.model, inputs, ["3"], k=9, max_samples=70, seed=seed)["3"]

        a, b, c = taken(w.inputs), taken(whole), taken(whole, seed=1)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
        np.testing.assert_array_equal(a.places.position, b.places.position)
        assert not np.array_equal(b.places.position, c.places.position)

    def test_samples_are_the_activations_of_their_places(self) -> None:
        w = network("cnn")
        d = explain.activations(w.model, w.inputs, ["3"], k=9, max_samples=70)["3"]
        A = seen(w.model, w.inputs, "3", 1).reshape(5, 64, 9)[d.places.input, d.places.position]
        assert d.samples == 70
        assert_is_svd(d, A, 1e-6)

    def test_they_are_drawn_evenly(self) -> None:
        model = nn.Conv1d(1, 1, 1)
        d = explain.activations(model, [torch.ones(1, 1, 1000)] * 40, [""], k=1, max_samples=4000)[""]
        assert np.bincount(d.places.input, minlength=40).std() < 3 * np.sqrt(100 * 0.9)
        assert np.abs(np.histogram(d.places.position, 10)[0] - 400).max() < 4 * np.sqrt(400)
        assert len(set(zip(d.places.input, d.places.position, strict=True))) == 4000


class TestPlaces:
    def test_of_a_strided_convolution(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1))
        d = explain.activations(model, [noise(2, 1, 16, 12), noise(1, 1, 8, 8)], ["1"], k=2)["1"]
        assert d.places.grids.tolist() == [[8, 3], [8, 3], [4, 2]]
        assert d.places.strides.tolist() == [[2, 4], [2, 4], [2, 4]]
        assert d.places.inputs.tolist() == [0, 1, 2]
        assert d.places.index[[0, 1, 3, 24, 55]].tolist() == [[0, 0], [0, 1], [1, 0], [0, 0], [3, 1]]
        assert d.places.coordinates[4].tolist() == [1.5 * 2 - 0.5, 1.5 * 4 - 0.5]
        image = d.map(1, 2)
        np.testing.assert_array_equal(image.ravel(), d.scores[48:, 1])

    def test_samples_that_were_not_taken_are_holes(self) -> None:
        d = explain.activations(network("cnn").model, noise(2, 1, 16, 16), ["3"], max_samples=50)["3"]
        holes = sum(np.isnan(d.map(0, piece)).sum() for piece in (0, 1))
        assert holes == 2 * 64 - 50

    def test_calls_and_windows_are_parts(self) -> None:
        d = explain.activations(Parts(), noise(3, 4), ["shared"])["shared"]
        assert d.places.inputs.tolist() == [0, 1, 2, 0, 1, 2]
        assert d.places.parts.tolist() == [0, 0, 0, 1, 1, 1]
        windows = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1), nn.Linear(3, 2))
        d = explain.activations(windows, noise(2, 6), ["2"])["2"]
        assert d.places.inputs.tolist() == [0, 0, 1, 1]
        assert d.places.parts.tolist() == [0, 1, 0, 1]

    def test_tokens_and_what_is_of_a_batch(self) -> None:
        w = network("language_model")
        d = explain.activations(w.model, w.inputs, ["transformer.wte", "transformer.wpe"], k=2)
        assert d["transformer.wte"].places.strides.tolist() == [[1]] * 3
        assert d["transformer.wpe"].places.inputs.tolist() == [-1]


class TestLayouts:
    def test_activation_functions_follow_the_layer_before(self) -> None:
        signals = nn.Sequential(nn.Conv1d(2, 5, 3), nn.ReLU())
        images = nn.Sequential(nn.Linear(3, 6), nn.GELU())
        for model, x, features in ((signals, noise(2, 2, 9), 5), (images, noise(2, 4, 5, 3), 6)):
            d = explain.activations(model, x, ["0", "1"], k=2)
            assert (d["0"].features, d["1"].features) == (features, features)

    def test_recurrent_ones_with_time_first(self) -> None:
        d = explain.activations(nn.GRU(3, 5), noise(7, 2, 3), [""], k=2)[""]
        assert d.places.grids.tolist() == [[7], [7]]

    def test_the_axis_can_be_said(self, refused) -> None:
        x = noise(2, 6, 4, 5)
        for axis in (2, {"": 2}):
            assert explain.activations(nn.Identity(), x, [""], k=2, features_axis=axis)[""].features == 4
        with refused(ValueError, "axis 0"):
            explain.activations(nn.Identity(), x, [""], features_axis=0)

    def test_the_tensor_can_be_said(self) -> None:
        w = super_resolution()
        as_is = explain.activations(w.model, w.inputs, [""], features_axis=-1, k=3)[""]
        image = explain.activations(w.model, w.inputs, [""], features_axis=-1, k=3, output=lambda p: p.image)[""]
        with torch.no_grad():
            prediction = w.model.eval()(w.inputs[0])
        for d, tensor in ((as_is, prediction.raw), (image, prediction.image)):
            expected = np.linalg.svd(tensor.flatten(0, 1).double().numpy(), compute_uv=False)
            np.testing.assert_allclose(d.values, expected[:3], rtol=1e-5)


class TestTheModelStaysAsItWas:
    @pytest.mark.parametrize("fails", [False, True])
    def test_modes_numbers_hooks_and_statistics(self, fails) -> None:
        model = cnn().model.train()
        model[1].eval()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        torch.manual_seed(3)
        expected = torch.randn(3)
        torch.manual_seed(3)
        x = noise(2, 1, 16, 16)
        x = x[..., :3] if fails else x
        fast = torch.backends.mha.get_fastpath_enabled()
        for run in (explain.activations, explain.jacobian):
            if fails:
                with pytest.raises(ValueError, match="cannot be called"):
                    run(model, x)
            else:
                run(model, x)
        torch.testing.assert_close(torch.randn(3), expected, rtol=0, atol=0)
        assert [m.training for m in model] == [True, False, True, True, True, True, True]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert torch.backends.mha.get_fastpath_enabled() == fast
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)

    def test_models_that_draw_numbers_can_be_gone_through_twice(self) -> None:
        model, x = Parts(noisy=True), [noise(30, 4), noise(20, 4)]
        kept = explain.activations(model, x, ["shared"])["shared"]
        again = explain.activations(model, x, ["shared"], memory_limit=1)["shared"]
        np.testing.assert_array_equal(kept.scores, again.scores)


def test_what_is_refused(refused) -> None:
    w = cnn()
    wrong = noise(2, 1, 16, 16)
    wrong[1] = torch.nan
    integers = nn.Sequential(nn.Flatten())
    for model, inputs, more, words in (
        (w.model, w.inputs, {"layers": ["33"]}, ("'33'", "'3'")),
        (w.model, w.inputs, {"k": 0}, ("1 or more",)),
        (w.model, w.inputs, {"max_samples": 0}, ("max_samples",)),
        (w.model, wrong, {"layers": ["3"]}, ("'3'", "NaN", "input 1")),
        (w.model, noise(2, 3, 16, 16), {}, ("Sequential", "2x3x16x16", "channels")),
        (w.model, [], {}, ("no inputs",)),
        (w.model, 5, {}, ("int",)),
        (Parts(), noise(2, 4), {"layers": ["unused"]}, ("'unused'", "never called")),
        (integers, torch.ones(2, 3, dtype=torch.complex64), {"layers": [""]}, ("complex",)),
        (nn.Identity(), [noise(2, 3), noise(2, 4)], {"layers": [""]}, ("4 features", "after 3", "features_axis")),
    ):
        with refused(ValueError, *words):
            explain.activations(model, inputs, **more)
    with refused(ValueError, "no tensor", "output="):
        explain.activations(_Text(), noise(2, 4), [""])
    d = explain.activations(w.model, w.inputs, ["3"], k=2)["3"]
    for call, words in (
        (lambda: d.map(2), "0 to 1"),
        (lambda: d.map(0, 5), "0 to 4"),
        (lambda: d.column(0), "vectors"),
    ):
        with refused(ValueError, words):
            call()


class _Text(nn.Module):
    def forward(self, x):
        return "text"


class TestParts:
    def test_parts_of_what_is_made_of_them(self) -> None:
        rng = np.random.default_rng(0)
        H = np.kron(np.eye(3), np.ones(4)) / 2
        A = (rng.random((200, 3)) * [3, 2, 1]) @ H
        parts = explain.nmf(nn.Identity(), torch.from_numpy(A), [""], 3)[""]
        np.testing.assert_allclose(parts.concepts, H.T, atol=0.05)
        assert parts.energy > 0.999
        assert (np.diff(parts.values) <= 0).all()
        np.testing.assert_allclose(parts.scores * parts.values @ parts.concepts.T, A, atol=0.05)
        np.testing.assert_allclose(np.linalg.norm(parts.scores, axis=0), 1)

    def test_after_a_relu_and_before(self, refused) -> None:
        w = cnn()
        parts = explain.nmf(w.model, w.inputs, ["4"], 4, max_samples=100)["4"]
        svd = explain.activations(w.model, w.inputs, ["4"], k=4, max_samples=100)["4"]
        np.testing.assert_array_equal(parts.places.position, svd.places.position)
        assert 0.5 * svd.energy[-1] < parts.energy <= svd.energy[-1] + 1e-9
        assert min(parts.concepts.min(), parts.scores.min()) >= 0
        with refused(ValueError, "'3'", "negative"):
            explain.nmf(w.model, w.inputs, ["3"], 4)
