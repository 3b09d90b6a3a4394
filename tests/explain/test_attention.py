"""Attention maps, against weights that are written out or returned."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.networks_to_explain import cnn, language_model, network, noise, torch_transformer, vit
from napari_gsvolume import explain
from napari_gsvolume.explain.decomposition.metrics import redundant_heads

pytestmark = pytest.mark.usefixtures("one_thread")


class Attends(nn.Module):
    """Calls PyTorch's function with what it is given."""

    def __init__(self, **more):
        super().__init__()
        self.more = more

    def forward(self, query, key, value):
        return functional.scaled_dot_product_attention(query, key, value, **self.more)


def maps(attention, piece=0):
    """Return the maps of all heads of an input from the modes, which are all of them, (heads, queries, keys)."""
    modes = attention.modes
    images = np.stack([modes.map(k, piece) for k in range(modes.k)])
    return np.tensordot(modes.concepts * modes.values, images, 1)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": noise(6, 6) > -0.5},
        {"attn_mask": noise(2, 1, 6, 6)},
        {"attn_mask": noise(1, 6) > -0.5},
        {"enable_gqa": True, "is_causal": True},
    ],
)
def test_weights_are_those_that_the_function_used(more) -> None:
    """Of unit vectors as values the result is the weights."""
    grouped = 2 if more.get("enable_gqa") else 4
    query, key = noise(2, 4, 6, 5), noise(2, grouped, 6, 5, seed=1)
    value = torch.eye(6).expand(2, grouped, 6, 6)
    expected = functional.scaled_dot_product_attention(query, key, value, **more)
    a = explain.attention(Attends(**more), (query, key, value), 4)
    for piece in (0, 1):
        np.testing.assert_allclose(maps(a, piece), expected[piece].numpy(), atol=1e-5)
    assert a.heads == tuple(("", h) for h in range(4))


def test_queries_that_see_no_key_have_no_weights() -> None:
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    a = explain.attention(Attends(attn_mask=mask), (noise(1, 2, 6, 5), noise(1, 2, 6, 5, seed=1), noise(1, 2, 6, 5)))
    weights = maps(a)
    np.testing.assert_allclose(weights[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(np.delete(weights, 2, 1).sum(-1), 1, atol=1e-5)


def test_written_out_or_called_is_the_same() -> None:
    called, written = vit(), vit(written_out=True)
    written.model.load_state_dict(called.model.state_dict())
    a, b = (explain.attention(w.model, w.inputs, 4) for w in (called, written))
    np.testing.assert_allclose(a.modes.values, b.modes.values, rtol=1e-5)
    np.testing.assert_allclose(a.similarity, b.similarity, atol=1e-5)
    np.testing.assert_allclose(a.entropy, b.entropy, atol=1e-5)
    assert a.heads == b.heads == tuple((f"blocks.{n}", h) for n in (0, 1) for h in (0, 1))


@pytest.mark.parametrize("asked", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_multi_head_attention(asked) -> None:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.inner(x, x, x, **asked)

    model, x = Model().eval(), noise(3, 5, 8)
    with torch.no_grad():
        expected = model.inner(x, x, x, average_attn_weights=False)[1].numpy()
    a = explain.attention(model, x)
    for piece in range(3):
        np.testing.assert_allclose(maps(a, piece), expected[piece], atol=1e-5)
    assert a.heads == (("inner", 0), ("inner", 1))


def test_the_fast_path_of_a_transformer_hides_nothing_and_results_stay(monkeypatch) -> None:
    w = torch_transformer()
    w.model.eval()
    with torch.no_grad():
        before = w.model(w.inputs[0])
    a = explain.attention(w.model, w.inputs)
    assert a.heads == tuple((f"layers.{n}.self_attn", h) for n in (0, 1) for h in range(4))
    with torch.no_grad():
        torch.testing.assert_close(w.model(w.inputs[0]), before)


def test_a_language_model_eager_or_not() -> None:
    fast, eager = language_model(), language_model(attn_implementation="eager")
    eager.model.load_state_dict(fast.model.state_dict())
    eager.model.eval()
    with torch.no_grad():
        given = eager.model(**eager.inputs[0], output_attentions=True).attentions
    expected = np.concatenate([g.numpy() for g in given], 1)
    for w in (fast, eager):
        a = explain.attention(w.model, w.inputs)
        assert a.heads[5] == ("transformer.h.1.attn", 1)
        np.testing.assert_allclose(maps(a, 2), expected[2], atol=1e-5)


def test_values_entropy_and_similarity_are_those_of_the_stack() -> None:
    w = network("vit")
    a = explain.attention(w.model, w.inputs, 4)
    stack = np.stack([maps(a, piece) for piece in range(5)])  # (inputs, heads, queries, keys)
    A = stack.transpose(1, 0, 2, 3).reshape(4, -1)
    np.testing.assert_allclose(a.modes.values, np.linalg.svd(A, compute_uv=False), rtol=1e-5)
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)
    np.testing.assert_allclose(a.similarity, unit @ unit.T, atol=1e-5)
    p = np.clip(stack, 1e-12, None)
    np.testing.assert_allclose(a.entropy, -(p * np.log(p)).sum(-1).mean((0, 2)), atol=1e-4)


def test_a_copied_head_is_redundant() -> None:
    w = network("vit")
    with torch.no_grad():
        for block in w.model.blocks:
            block.qkv.weight.mul_(4)
        qkv = w.model.blocks[1].qkv
        for t in (qkv.weight, qkv.bias):
            t[8:16] = t[:8]  # query and key of head 1 are those of head 0
            t[24:32] = t[16:24]
    a = explain.attention(w.model, w.inputs)
    [(i, j, cosine)] = redundant_heads(a.similarity, 0.999)
    assert (a.heads[i], a.heads[j]) == (("blocks.1", 0), ("blocks.1", 1))
    assert cosine == pytest.approx(1)
    assert a.modes.k == 3 or a.modes.values[3] < 1e-5 * a.modes.values[0]


def test_long_sequences_and_little_memory() -> None:
    w = network("vit")
    whole = explain.attention(w.model, w.inputs)
    some = explain.attention(w.model, w.inputs, max_queries=5)
    again = explain.attention(w.model, w.inputs, max_queries=5, memory_limit=10)
    assert some.modes.samples == 5 * 5 * 17
    taken = ~np.isnan(some.modes.map(0)).all(1)
    assert taken.sum() == 5
    np.testing.assert_allclose(maps(some)[:, taken], maps(whole)[:, taken], atol=1e-5)
    np.testing.assert_array_equal(some.modes.scores, again.modes.scores)
    np.testing.assert_allclose(some.entropy, again.entropy)


def test_some_layers_and_several_sizes(refused) -> None:
    w = network("vit")
    a = explain.attention(w.model, w.inputs, layers=["blocks.1"])
    assert {layer for layer, _ in a.heads} == {"blocks.1"}

    class TwoSizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Attends(), Attends()

        def forward(self, x):
            return self.second(self.first(x, x, x)[..., :3, :], x, x)

    with refused(ValueError, "several sizes", "6 x 6 (first)", "3 x 6 (second)"):
        explain.attention(TwoSizes(), noise(1, 2, 6, 4))
    assert explain.attention(TwoSizes(), noise(1, 2, 6, 4), layers=["second"]).modes.map(0).shape == (3, 6)


def test_what_is_refused(refused) -> None:
    w = network("vit")
    for call, words in (
        (lambda: explain.attention(cnn().model, cnn().inputs), "No attention"),
        (lambda: explain.attention(w.model, w.inputs, layers=["head"]), "'head'"),
        (lambda: explain.attention(w.model, w.inputs, layers=["heads"]), "'head'"),
        (lambda: explain.attention(w.model, [x * torch.nan for x in w.inputs]), "NaN"),
        (lambda: explain.attention(w.model, w.inputs, 0), "1 or more"),
        (lambda: explain.attention(w.model, w.inputs, max_queries=0), "max_queries"),
    ):
        with refused(ValueError, words):
            call()
    before = copy.deepcopy([list(m._forward_hooks) for m in w.model.modules()])
    assert not any(before)
