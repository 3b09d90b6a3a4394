"""Script of a user, for a type checker: the installed package tells the types of its public names.

``tox -e lint`` checks it with ``mypy --strict`` against the installed wheel; it is not run.
"""

from pathlib import Path

import numpy as np

import napari_gsvolume as gsv


def fit_and_save(path: Path) -> float:
    volume, grid = gsv.phantoms.vessel_phantom(32)
    for step in gsv.fit_steps(volume, grid=grid, gaussians=50, iterations=5):
        fraction: float = step.fraction
        print(fraction, step.message, step.psnr_db, step.n_gaussians)
    result: gsv.FitResult = gsv.fit(volume, grid=grid, gaussians=50, iterations=5)
    gaussians: gsv.GaussianVolume = result.gaussians
    gsv.save(path, gaussians)
    return result.psnr_db


def reconstruct_from_projections(scan: gsv.Scan) -> tuple[int, ...]:
    volume, grid = gsv.phantoms.anatomical_phantom(24)
    projections = gsv.project(volume, scan)
    reconstruction = gsv.reconstruct(projections, grid=grid, iterations=5)
    return reconstruction.gaussians.grid.shape


def render(grid: gsv.Grid) -> tuple[int, ...]:
    volume = np.zeros(grid.shape, np.float32)
    camera: gsv.Camera = gsv.Camera.look_at((0, -100, 0), image_size=(64, 64))
    transfer_function = gsv.TransferFunction.from_preset("mr", volume)
    return gsv.render_views(volume, grid.voxel_size, camera, "dvr", transfer_function).shape


def superresolve(path: Path) -> gsv.SRModel:
    volume, _ = gsv.phantoms.anatomical_phantom(24)
    trained = gsv.train_superresolution([volume], iterations=5)
    result = gsv.superresolve(volume, trained.model)
    print(result.volume.shape)
    try:
        return gsv.SRModel.load(path)
    except gsv.FileFormatError as error:
        raise SystemExit(str(error)) from error


def decompose(image: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> int:
    return gsv.decompose(image).rank
