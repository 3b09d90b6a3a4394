"""Edits change the output as they must, and leave the model as it was."""

import numpy as np
import pytest
import torch
from torch import nn

from napari_gsvolume.explain import Counterfactual, Edit, activations, apply_edits
from napari_gsvolume.explain.concepts.interventions import component_rms

pytestmark = pytest.mark.usefixtures("one_thread")


class Branches(nn.Module):
    """A residual block between other layers, one of which is called twice; and what each module was called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.shared = nn.Conv2d(4, 4, 1)
        self.act = nn.ReLU(inplace=True)
        self.tail = nn.Conv2d(4, 2, 3, padding=1)
        self.double()

    def forward(self, x):
        h = self.head(x)
        h = self.shared(h) + self.body(h)
        h = self.shared(self.act(h))
        return {"image": self.tail(h), "features": (h,)}


def image(count=2, side=8):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1)).double()


def counted(model):
    """Return how often each module's forward has run, counted below any hook."""
    counts = {}
    for name, module in model.named_modules():
        original = module.forward

        def forward(*args, original=original, name=name, **kwargs):
            counts[name] = counts.get(name, 0) + 1
            return original(*args, **kwargs)

        module.forward = forward
    return counts


class TestEdit:
    def test_a_linear_layer_moves_the_output_by_the_known_amount(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).double()
        x, direction = torch.randn(7, 3).double(), torch.randn(5).double().numpy()
        before = model(x)
        with apply_edits(model, Edit("0", direction, 2.5)):
            change = model(x) - before
        torch.testing.assert_close(change, (2.5 * model[1].weight @ torch.from_numpy(direction)).expand(7, 2))
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)

    def test_scaling_and_removing_are_about_the_mean(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Identity()).double()
        x, direction, mean = torch.randn(7, 3).double(), torch.randn(5).double(), torch.randn(5).double()
        h, unit = model(x), direction / direction.norm()
        for edit, factor in (
            (Edit("0", direction, 3, "scale", mean=mean), 3),
            (Edit("0", direction, 9, "remove", mean=mean), 0),
        ):
            with apply_edits(model, edit):
                found = model(x)
            torch.testing.assert_close((found - mean) @ unit, factor * ((h - mean) @ unit))
            torch.testing.assert_close(found - (found @ unit)[:, None] * unit, h - (h @ unit)[:, None] * unit)

    def test_a_mode_is_moved_in_its_spread(self) -> None:
        model = Branches().eval()
        found = activations(model, image(), ["head"], 4)["head"]
        coordinates = found.scores[:, 1] * found.values[1]
        assert component_rms(found, 1) == pytest.approx(np.sqrt(np.square(coordinates).mean()))
        with apply_edits(model, Edit.of_mode(found, 1, 2.0)):
            moved = activations(model, image(), ["head"], 4)["head"]  # sees what the rest of the model sees
        projections = (moved.scores * moved.values) @ moved.concepts.T @ found.concepts
        expected = found.scores * found.values + np.eye(4)[1] * 2 * component_rms(found, 1)
        np.testing.assert_allclose(projections, expected, atol=1e-6)  # scores are float32

    @pytest.mark.parametrize("of_input", [False, True])
    def test_in_a_mask_of_positions(self, of_input) -> None:
        model = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.Identity()).double()
        x, mask = image(), np.zeros((4, 4), dtype=bool)
        mask[1, 2:] = True
        given = np.repeat(np.repeat(mask, 2, 0), 2, 1) if of_input else mask
        with apply_edits(model, Edit("0", [1, 0, -2], mask=given)):
            change = (model(x) - nn.functional.conv2d(x, *model[0].parameters(), stride=2)).detach()
        expected = np.array([1.0, 0, -2])[None, :, None, None] * mask
        np.testing.assert_allclose(change.numpy(), np.broadcast_to(expected, (2, 3, 4, 4)), atol=1e-12)

    def test_the_model_is_as_before_after_errors(self, refused) -> None:
        model = Branches()
        before = {n: dict(vars(m)) for n, m in model.named_modules()}
        with refused(ValueError, "3 features", "'tail'"), apply_edits(model, Edit("tail", [1, 2, 3])):
            model(image())
        with (
            refused(ValueError, "no layer 'tial'", "'tail'"),
            apply_edits(model, Edit("head", np.ones(4)), Edit("tial", [1, 2])),
        ):
            model(image())
        with refused(ValueError, "mask"), apply_edits(model, Edit("tail", [1, 2], mask=np.ones(5))):
            model(image())
        for name, module in model.named_modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
            assert vars(module).keys() == before[name].keys()

    def test_refusals(self, refused) -> None:
        with refused(ValueError, "not all 0"):
            Edit("x", [0, 0])
        with refused(ValueError, "adds, scales or removes"):
            Edit("x", [1], how="multiply")
        found = activations(Branches(), image(), ["head"], 4)["head"]
        with refused(ValueError, "no mode 4"):
            Edit.of_mode(found, 4)


class TestCounterfactual:
    @pytest.mark.parametrize("layer", ["head", "body", "body.0", "body.1", "shared", "act", "tail"])
    def test_it_is_what_the_whole_model_gives_and_runs_only_what_comes_after(self, layer) -> None:
        model, x = Branches(), image()
        direction = np.array([1.0, -0.5, 0.25, 2])[: 2 if layer == "tail" else 4]
        live = Counterfactual(model, x, layer)
        model.eval()
        with torch.no_grad():
            plain = model(x)
        torch.testing.assert_close(live.unedited["image"], plain["image"], rtol=0, atol=0)
        counts = counted(model)
        for amount in (0.5, -3.0, 0.0):
            edit = Edit(layer, direction, amount)
            with torch.no_grad(), apply_edits(model, edit):
                expected = model(x)
            counts.clear()
            found = live(edit)
            torch.testing.assert_close(found["image"], expected["image"])
            torch.testing.assert_close(found["features"][0], expected["features"][0])
            assert counts.get("head", 0) == 0
            assert counts.get(layer, 0) == (1 if layer == "shared" else 0)
        assert (live(Edit(layer, direction, 5.0))["image"] - plain["image"]).abs().max() > 0.1

    def test_modes_of_modules_and_their_forwards_are_restored(self) -> None:
        model = Branches()
        model.body.eval()
        live = Counterfactual(model, image(), "body.1")
        live(Edit("body.1", np.ones(4)))
        with pytest.raises(ValueError, match="features"):
            live(Edit("body.1", np.ones(3)))
        assert model.training
        assert not model.body.training
        assert all("forward" not in vars(module) for module in model.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_a_slider(self) -> None:
        model, x = Branches(), image()
        live = Counterfactual(model, x, "shared")
        outputs = list(live.along(Edit("tail", [1.0, 0], how="add"), [0, 1, 2]))
        assert [amount for amount, _ in outputs] == [0, 1, 2]
        torch.testing.assert_close(outputs[2][1]["image"][:, 0], live.unedited["image"][:, 0] + 2)

    def test_features_last_are_known_though_what_tells_so_does_not_run_again(self) -> None:
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(4, 4), nn.Identity())
        model = nn.Sequential(block, nn.Identity(), nn.Linear(4, 2)).double()
        x, direction = torch.randn(1, 4, 4, 4).double(), np.array([1.0, 2, 3, 4])
        with torch.no_grad(), apply_edits(model, Edit("1", direction)):
            expected = model(x)
        torch.testing.assert_close(Counterfactual(model, x, "1")(Edit("1", direction)), expected)

    def test_refusals(self, refused) -> None:
        model = Branches()
        with refused(ValueError, "'head' comes before 'act'"):
            Counterfactual(model, image(), "act")(Edit("head", np.ones(4)))
        model.unused = nn.Linear(2, 2)
        with refused(ValueError, "never called"):
            Counterfactual(model, image(), "unused")
