"""
Fewer Gaussians with a sparsity penalty
=======================================

Penalties are added to the mean squared error of a fit. The sparsity penalty makes small weights zero, and Gaussians
of weight zero are removed: the fit decides for itself which ones are worth keeping.
"""

import matplotlib.pyplot as plt

import napari_gsvolume as gsv

volume, grid = gsv.phantoms.vessel_phantom(32)

# %%
# Each fit starts with the same number of Gaussians to work towards. The weight of a penalty is the mean squared error,
# relative to the squared data range, that one unit of the penalty is worth. At 30 dB that error is 0.001, so 0.001 is a
# sensible value to begin with.
weights = (0.0, 1e-3, 3e-3, 1e-2, 3e-2)
results = [gsv.fit(volume, grid=grid, gaussians=200, iterations=15, sparsity_weight=weight) for weight in weights]
for weight, result in zip(weights, results, strict=True):
    print(f"sparsity {weight:g}: {result.n_gaussians:3d} Gaussians, {result.psnr_db:.2f} dB")

# %%
# The first Gaussians that go explain little, so that they cost little; further on, each one costs more.
fig, ax = plt.subplots(figsize=(6, 3.6), layout="compressed")
ax.plot([r.n_gaussians for r in results], [r.psnr_db for r in results], "o-")
for weight, result in zip(weights, results, strict=True):
    ax.annotate(f"{weight:g}", (result.n_gaussians, result.psnr_db), (6, -12), textcoords="offset points")
ax.set(title="What sparsity costs", xlabel="number of Gaussians that remain", ylabel="PSNR (dB)")
ax.grid(alpha=0.3)
ax.margins(0.1)
plt.show()

# %%
# What the penalty does to the weights
# ------------------------------------
# It pulls all weights towards zero. Negative ones, which carve into their positive neighbours, become few and small.
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharex=True, layout="compressed")
for ax, k in zip(axes, (0, 3), strict=True):
    ax.hist(results[k].gaussians.weights.numpy(), bins=60, range=(-1, 1.5))
    ax.set(title=f"Sparsity weight {weights[k]:g}", xlabel="weight of a Gaussian (intensity)", ylabel="number")
plt.show()

# %%
# The vessels themselves stay: here is the maximum along z of the volume and of two fits.
fig, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="compressed")
shown = {"Volume": volume} | {
    f"{results[k].n_gaussians} Gaussians, {results[k].psnr_db:.1f} dB": results[k].reconstruction for k in (0, 3)
}
for ax, (title, array) in zip(axes, shown.items(), strict=True):
    image = ax.imshow(array.max(0), cmap="gray", vmin=0, vmax=1)
    ax.set(title=title, xlabel="x (voxels)", ylabel="y (voxels)")
fig.colorbar(image, ax=axes, label="maximum intensity along z", shrink=0.8)
plt.show()
