"""Benchmarks of explanations: streaming SVD, Jacobian compared with the dense one, selections in the widget.

    python benchmarks/explain.py --streaming --jacobian
    xvfb-run -a -s "-screen 0 1600x1000x24 +extension GLX" python benchmarks/explain.py --selections

Prints the measurements. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from napari_gsvolume import explain
from napari_gsvolume.explain.decomposition.streaming_svd import StreamingSVD
from napari_gsvolume.settings import validated
from napari_gsvolume.super_resolution.schemes import build_scheme
from napari_gsvolume.super_resolution.settings import TrainSRSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streaming", action="store_true", help="streaming SVD of 10 million rows of 64 features")
    parser.add_argument(
        "--jacobian", action="store_true", help="8 modes of the Jacobian of an EDSR on a patch of 64 x 64"
    )
    parser.add_argument(
        "--selections", action="store_true", help="selection of 100,000 samples in the widget; needs a display"
    )
    options = parser.parse_args()
    for name in ("streaming", "jacobian", "selections"):
        if getattr(options, name):
            globals()[name]()


def streaming(rows: int = 10_000_000, features: int = 64, block: int = 65_536) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(features, features)) * np.logspace(0, -3, features)

    def blocks() -> Iterator[NDArray[np.float32]]:
        for first in range(0, rows, block):
            noise = rng.normal(size=(min(block, rows - first), features)).astype(np.float32)
            yield noise @ mixing.astype(np.float32)

    svd = StreamingSVD(16)
    began = time.perf_counter()
    for one in blocks():
        svd.update(one)
    svd.result()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{rows:,} rows of {features} features: {seconds:.0f} s, made on the way; {peak:.2f} GiB at most in all")


def jacobian(k: int = 8, side: int = 64, columns: int = 64) -> None:
    """Compare with the dense Jacobian, whose time is extrapolated from some of its columns."""
    settings = validated(TrainSRSettings, scheme="residual")
    model = build_scheme(settings).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    low = torch.randn(1, settings.depth, side, side, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    found = explain.jacobian(model, low, k)
    ours = time.perf_counter() - began
    print(
        f"Jacobian of {settings.backbone}, {tuple(low.shape)}: top {k} in {ours:.1f} s, largest {found.values[0]:.3f}"
    )

    def image(x: torch.Tensor) -> torch.Tensor:
        picture: torch.Tensor = model(x).image
        return picture

    tangents = torch.eye(low.numel())[:columns].view(columns, *low.shape)
    began = time.perf_counter()
    with torch.no_grad():
        torch.func.vmap(lambda t: torch.func.jvp(image, (low,), (t,))[1], chunk_size=16)(tangents)
    dense = (time.perf_counter() - began) * low.numel() / columns
    print(
        f"The dense one, of {columns} of {low.numel()} columns: {dense:.0f} s without its SVD, {dense / ours:.1f} times"
    )


def selections(count: int = 100_000) -> None:
    import napari
    from qtpy.QtWidgets import QApplication

    def settled() -> None:
        while widget.running or widget.busy:
            QApplication.processEvents()
            time.sleep(0.01)

    viewer = napari.Viewer()
    viewer.add_image(np.random.default_rng(0).normal(size=(10, 100, 110)).astype(np.float32), name="noise")
    _, widget = viewer.window.add_plugin_dock_widget("napari-gsvolume", "Explain")
    widget.model.model.value = f"{__name__}:network"
    widget.model.load.native.click()
    settled()
    widget.button.native.click()
    settled()
    widget.tabs.setCurrentWidget(widget.samples)
    QApplication.processEvents()
    plot, seconds = widget.samples.plot, []
    for bound in np.linspace(-1, 2, 12):
        began = time.perf_counter()
        plot._on_circled([(bound, -9), (9, -9), (9, 9), (bound, 9)])
        plot.canvas.repaint()
        seconds.append(time.perf_counter() - began)
    assert len(plot.points) == count
    print(f"A selection of {count:,} samples, to layer and plot: {1e3 * float(np.median(seconds[1:])):.0f} ms (median)")
    viewer.close()


def network() -> torch.nn.Module:
    """Return a network with a layer on the voxels of the image."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 1))


if __name__ == "__main__":
    main()
