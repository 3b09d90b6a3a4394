"""
Sample Gaussians at any point and any resolution
================================================

Gaussians are a function of continuous coordinates. Once fitted, they can be evaluated at any point, on smaller or
larger voxels, and on a plane of any orientation.
"""

import matplotlib.pyplot as plt
import numpy as np

import napari_gsvolume as gsv

volume, grid = gsv.phantoms.vessel_phantom(32)
gaussians = gsv.fit(volume, grid=grid, gaussians=300, iterations=25).gaussians

# %%
# Smaller voxels
# --------------
# ``sample(scale=4)`` divides every voxel in 4 x 4 x 4. The outer faces of the volume stay where they are in the world.
smooth = gaussians.sample(scale=4)
print(volume.shape, "->", smooth.shape, "voxels of", gaussians.grid.resampled(4).voxel_size, "mm")

fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="compressed")
half = grid.shape[0] * grid.voxel_size[0] / 2
extent = (-half, half, half, -half)
shown = {"Volume": volume, "Gaussians on its voxels": gaussians.sample(), "Gaussians on voxels of a quarter": smooth}
for ax, (title, array) in zip(axes, shown.items(), strict=True):
    image = ax.imshow(array.max(0), cmap="gray", vmin=0, vmax=1, extent=extent)
    ax.set(title=title, xlabel="x (mm)", ylabel="y (mm)", xlim=(-20, 20), ylim=(20, -20))
fig.colorbar(image, ax=axes, label="maximum intensity along z", shrink=0.8)
plt.show()

# %%
# An oblique plane
# ----------------
# Any points will do. This plane goes through the centre of the volume, tilted by 35 degrees; its 300 x 300 points are
# evaluated directly, in index coordinates (z, y, x).
centre = (np.array(grid.shape) - 1) / 2
across = np.array([0.0, 0.0, 1.0])
down = np.array([np.sin(np.radians(35)), np.cos(np.radians(35)), 0.0])
t = np.linspace(-15, 15, 300)
points = centre + t[:, None, None] * down + t[None, :, None] * across
plane = gaussians.evaluate(points.reshape(-1, 3)).reshape(300, 300)

fig, ax = plt.subplots(figsize=(5, 4), layout="compressed")
half = 15 * grid.voxel_size[0]
image = ax.imshow(plane, cmap="gray", vmin=0, vmax=1, extent=(-half, half, half, -half))
ax.set(title="A plane tilted by 35 degrees", xlabel="along x (mm)", ylabel="down the plane (mm)")
fig.colorbar(image, ax=ax, label="intensity")
plt.show()

# %%
# A profile
# ---------
# The function between the voxels is smooth: it has no steps, as nearest-neighbour sampling has.
z, y, x = np.unravel_index(volume[4:-4, 4:-4, 4:-4].argmax(), (24, 24, 24)) + np.array([4, 4, 4])
line = np.linspace(x - 4, x + 4, 200)
values = gaussians.evaluate(np.stack([np.full(200, z), np.full(200, y), line], 1))

fig, ax = plt.subplots(figsize=(6, 3.2), layout="compressed")
ax.plot(np.arange(x - 4, x + 5), volume[z, y, x - 4 : x + 5], "o", label="voxels")
ax.plot(line, values, label="Gaussians")
ax.set(title="Across one vessel", xlabel="x (voxels)", ylabel="intensity")
ax.legend()
plt.show()
