"""
Fit a volume and look at what is left
=====================================

A volume becomes a sum of Gaussians: each has a centre, a shape and a weight. This example fits a synthetic CT scan
with 500 of them, and shows the residual, the part of the volume that they do not explain.
"""

import matplotlib.pyplot as plt

import napari_gsvolume as gsv

# %%
# The phantom is a chest and upper abdomen in Hounsfield units (HU): air is -1000, water 0, bone up to 850. ``grid``
# knows the size of a voxel in mm, so that results can be placed in the world.
volume, grid = gsv.phantoms.anatomical_phantom(40)
print(volume.shape, "voxels of", grid.voxel_size, "mm")

# %%
# Follow the fit
# --------------
# Gaussians are added in rounds, at the places where the residual is large, so that their number grows while the error
# falls. ``history`` has a point for each iteration; ``gsv.fit_steps`` yields them live.
result = gsv.fit(volume, grid=grid, gaussians=500, iterations=30)
print(f"{result.n_gaussians} Gaussians, PSNR {result.psnr_db:.1f} dB, SSIM {result.ssim:.3f}, {result.seconds:.1f} s")

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="compressed")
points = [point for point in result.history if point.n_gaussians]
left.plot([point.n_gaussians for point in points], color="tab:blue")
left.set(title="Gaussians are added in rounds", xlabel="iteration", ylabel="number of Gaussians")
right.plot([point.psnr_db for point in points], color="tab:orange")
right.set(title="The fit gets better with each iteration", xlabel="iteration", ylabel="PSNR (dB)")
for axes in (left, right):
    axes.grid(alpha=0.3)

# %%
# Volume, fit and residual
# ------------------------
# All three are shown in the same coronal slice. What is left is mostly noise, and edges sharper than the Gaussians:
# more Gaussians would follow them.
middle = volume.shape[1] // 2
fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="compressed")
shown = {
    "Volume": volume,
    f"{result.n_gaussians} Gaussians, {result.psnr_db:.1f} dB": result.reconstruction,
    "Residual (volume - fit)": volume - result.reconstruction,
}
half = grid.shape[0] * grid.voxel_size[0] / 2
for ax, (title, array) in zip(axes, shown.items(), strict=True):
    residual = title.startswith("Residual")
    limits = {"vmin": -300, "vmax": 300, "cmap": "RdBu_r"} if residual else {"vmin": -1000, "vmax": 600, "cmap": "gray"}
    image = ax.imshow(array[:, middle], origin="lower", extent=(-half, half, -half, half), **limits)
    ax.set(title=title, xlabel="x (mm)", ylabel="z (mm)")
    fig.colorbar(image, ax=ax, label="HU")
plt.show()

# %%
# Where the Gaussians are
# -----------------------
# Means are in index coordinates (z, y, x), weights in HU above or below the background. Many small Gaussians draw the
# edges of bones and lungs, few wide ones the soft tissue between them.
gaussians = result.gaussians
near = (gaussians.means[:, 1] - middle).abs() < 2
means, weights = gaussians.means[near].numpy(), gaussians.weights[near].numpy()
radius = gaussians.covariances[near].det().numpy() ** (1 / 6)

fig, ax = plt.subplots(figsize=(5.5, 4.6), layout="compressed")
ax.imshow(volume[:, middle], origin="lower", cmap="gray", vmin=-1000, vmax=600, alpha=0.5)
dots = ax.scatter(
    means[:, 2], means[:, 0], s=12 * radius**2, c=weights, cmap="coolwarm", vmin=-900, vmax=900, alpha=0.8
)
ax.set(title=f"The {near.sum()} Gaussians nearest to the slice", xlabel="x (voxels)", ylabel="z (voxels)")
ax.set(xlim=(-0.5, 39.5), ylim=(-0.5, 39.5))
fig.colorbar(dots, label="weight (HU)")
plt.show()
