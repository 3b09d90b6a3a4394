"""Reports: what is in them is text, whatever it is called."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.long_runs import collect
from napari_gsvolume.explain.concepts.concept_maps import concept_map_steps, concept_maps
from napari_gsvolume.explain.explanation import explain, explain_steps, layer_metrics
from napari_gsvolume.explain.findings.finding import Finding
from napari_gsvolume.explain.models.explained_model import ExplainedModel
from napari_gsvolume.explain.models.inputs import Volume
from napari_gsvolume.explain.report.html import draw_map_view, render_report
from napari_gsvolume.explain.report.tables import findings_table
from napari_gsvolume.explain.settings import ExplainSettings
from napari_gsvolume.progress import Budget

pytestmark = pytest.mark.usefixtures("one_thread")

WAVES = np.sin(np.arange(8 * 10 * 12, dtype=np.float32) ** 1.3).reshape(8, 10, 12)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(5, 2, 2, 2))
    model[0].weight.data[1], model[0].bias.data[1] = 0, 0.1  # a dead unit
    return model


def test_names_are_escaped() -> None:
    name = "<script>alert('1')</script>&\""
    result = explain(
        ExplainedModel(network(), name, weights=name), [Volume.of(name, WAVES)], ExplainSettings(what="all", patch=4)
    )
    views = [draw_map_view(maps) for maps in result.maps]
    page = render_report(result, views, [f"concepts/{name}/0.nii.gz"])
    assert len(views) == 2
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count('src="data:image/') == 1 + 2 + 1


def test_what_is_found_and_what_it_says() -> None:
    steps, result = collect(explain_steps(ExplainedModel(network(), "net"), [Volume.of("waves", WAVES)]))
    progress = [step.fraction for step in steps]
    assert progress == sorted(progress)
    assert progress[-1] == 1
    [dead] = [f for f in result.findings if f.kind == "dead units"]
    assert dead.sentence in render_report(result)
    assert dead.subject == "1"
    f = layer_metrics(result.layers["0"])
    s = result.layers["0"].spectrum
    assert f["participation_ratio"] == pytest.approx(np.square(s).sum() ** 2 / (s**4).sum())
    assert f["stable_rank"] == pytest.approx(np.square(s).sum() / s[0] ** 2)


def test_a_layer_finer_than_the_image_has_a_finer_grid() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 1, bias=False))
    model[1].weight.data.fill_(1)
    volume = Volume.of("waves", WAVES)
    result = explain(ExplainedModel(model, "net"), [volume], ExplainSettings(normalise="none", k=1))
    [maps] = concept_maps(model, result.images, result.layers, 1)
    assert [one.layer for one in result.maps] == [maps.layer]
    np.testing.assert_array_equal(result.maps[0].values, maps.values)
    assert maps.grid == volume.grid.resampled((1, 2, 2))
    np.testing.assert_allclose(maps.values[0], WAVES.repeat(2, 1).repeat(2, 2), atol=1e-6)


def test_a_table_of_findings_keeps_commas_and_digits() -> None:
    text = findings_table([Finding("drift", "a", 'One, "two".', 1 / 3, 0.5, interval=(0.1, 0.2))])
    assert text.splitlines()[1] == 'drift,a,,,,0.3333333333333333,0.5,0.1,0.2,,"One, ""two""."'


def test_it_stops_and_says_so() -> None:
    settings = ExplainSettings(what="all")
    budget = Budget(stop=lambda: True)
    _, result = collect(explain_steps(network(), [Volume.of("waves", WAVES)], settings, budget=budget))
    assert result.is_empty
    assert "Stopped before it was finished." in render_report(result)


def test_maps_beyond_the_memory_limit_are_the_same_and_kept_on_disk() -> None:
    result = explain(network(), [Volume.of("waves", WAVES)])
    steps, maps = collect(concept_map_steps(network(), result.images, result.layers, memory_limit=1))
    assert [one.layer for one in maps] == [one.layer for one in result.maps]
    assert [one for step in steps for one in step.maps] == list(maps)
    for one, other in zip(maps, result.maps, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert all(isinstance(piece, np.memmap) for piece in one.pieces.values())
