"""
Render views with a transfer function
=====================================

Direct volume rendering gives each intensity a colour and an opacity, and sums up the light along each ray. The
transfer function decides what is seen; the cameras decide from where.
"""

import matplotlib.pyplot as plt
import numpy as np

import napari_gsvolume as gsv
from napari_gsvolume.rendering import bounding_radius, orbit_cameras, turntable_directions

volume, grid = gsv.phantoms.anatomical_phantom(64)
radius = bounding_radius(volume.shape, grid.voxel_size)

# %%
# A transfer function
# -------------------
# It is a list of points: intensity, colour and opacity. Between them it is linear. The opacity is the part of the light
# that a layer of ``unit_mm`` absorbs.
glass = gsv.TransferFunction(
    values=np.array([-600.0, -250, -100, 150, 250, 400, 850]),
    colors=np.array(
        [
            (0.9, 0.6, 0.5),
            (0.9, 0.6, 0.5),
            (0.9, 0.5, 0.4),
            (0.8, 0.2, 0.2),
            (0.9, 0.7, 0.5),
            (1, 0.95, 0.85),
            (1, 1, 1),
        ]
    ),
    opacities=np.array([0, 0.06, 0.0, 0.0, 0.15, 0.5, 0.9]),
    unit_mm=3.0,
    shading=True,
)
fig, ax = plt.subplots(figsize=(7, 2.6), layout="compressed")
hu = np.linspace(-1000, 1000, 500)
colours = glass.evaluate(hu)
ax.scatter(hu, colours[:, 3], c=colours[:, :3], s=12)
ax.set(title="A transfer function: faint skin, solid bone", xlabel="intensity (HU)", ylabel="opacity of 3 mm")
ax.set_facecolor("0.2")

# %%
# One view, three transfer functions
# ----------------------------------
# Cameras look at the centre of the volume from directions on the sphere: ``turntable_directions`` circle the z axis.
front = orbit_cameras(turntable_directions(1, elevation=10), radius, (200, 200), zoom=1.3)
shown = {
    "ct-bone (a preset)": gsv.TransferFunction.from_preset("ct-bone", volume),
    "ct-soft-tissue (a preset)": gsv.TransferFunction.from_preset("ct-soft-tissue", volume),
    "Glass body": glass,
}
fig, axes = plt.subplots(1, 3, figsize=(11, 4), layout="compressed")
for ax, (title, transfer) in zip(axes, shown.items(), strict=True):
    [image] = gsv.render_views(volume, grid.voxel_size, front, transfer_function=transfer)
    ax.imshow(image)
    ax.set_title(title)
    ax.axis("off")
plt.show()

# %%
# An orbit
# --------
# Eight cameras around the body. The same ones can be saved, and used to train splats or to render them.
orbit = orbit_cameras(turntable_directions(8, elevation=15), radius, (128, 128), zoom=1.3)
frames = gsv.render_views(
    volume, grid.voxel_size, orbit, transfer_function=gsv.TransferFunction.from_preset("ct-bone", volume)
)
fig, axes = plt.subplots(2, 4, figsize=(11, 5.8), layout="compressed")
for k, (ax, frame) in enumerate(zip(axes.flat, frames, strict=True)):
    ax.imshow(frame)
    ax.set_title(f"{45 * k} degrees")
    ax.axis("off")
fig.suptitle("Camera orbit, bones of the phantom")
plt.show()

# %%
# Other projections
# -----------------
# Without a transfer function: the largest intensity along each ray, the mean, and the line integral.
fig, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="compressed")
units = {"mip": "maximum (HU)", "mean": "mean (HU)", "xray": "line integral above air (HU mm)"}
for ax, (mode, unit) in zip(axes, units.items(), strict=True):
    [image] = gsv.render_views(volume + 1000 * (mode == "xray"), grid.voxel_size, front, mode)
    picture = ax.imshow(image[..., 0], cmap="gray")
    ax.set_title(mode)
    ax.axis("off")
    fig.colorbar(picture, ax=ax, label=unit, shrink=0.8)
plt.show()
