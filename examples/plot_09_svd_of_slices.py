"""
Singular values of slices and the best rank
===========================================

A slice is a matrix. Its singular value decomposition writes it as a sum of images of rank one, strongest first:
smooth structure comes early, noise comes late. This example decomposes a noisy slice and finds the rank at which to
stop.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage.metrics import peak_signal_noise_ratio

import napari_gsvolume as gsv
from napari_gsvolume.svd import effective_rank, optimal_threshold

# %%
# The same slice without and with noise of 100 HU.
clean = gsv.phantoms.anatomical_phantom(128, noise=0.0)[0][52]
noisy = clean + np.random.default_rng(0).normal(0, 100, clean.shape)
svd = gsv.decompose(noisy)

# %%
# How many modes to keep
# ----------------------
# Gavish and Donoho (2014) derived the threshold on singular values that is optimal for white noise. It can be computed
# from the values alone: the noise is estimated from their median.
threshold = float(optimal_threshold(svd.values, svd.shape))
rank = int((svd.values > threshold).sum())
print(f"{svd.rank} modes, effective rank {float(effective_rank(svd.values)):.1f}, {rank} above the threshold")

quality = [peak_signal_noise_ratio(clean, svd.truncate(k), data_range=np.ptp(clean)) for k in range(1, svd.rank + 1)]
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="compressed")
modes = np.arange(1, svd.rank + 1)
left.semilogy(modes, svd.values, label="noisy slice")
left.semilogy(modes, gsv.decompose(clean).values, label="slice without noise")
left.axhline(threshold, color="k", linestyle="--", label=f"optimal threshold: rank {rank}")
left.set(title="Singular values", xlabel="mode", ylabel="singular value (HU)", ylim=(10, None))
left.legend()
right.plot(modes, quality)
right.axvline(rank, color="k", linestyle="--", label=f"optimal threshold: rank {rank}")
right.set(title="Error against the slice without noise", xlabel="rank kept", ylabel="PSNR (dB)")
right.legend()
plt.show()

# %%
# Too few modes blur, too many bring the noise back.
fig, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="compressed")
shown = {"Noisy slice": noisy, "Rank 4": svd.truncate(4), f"Rank {rank}": svd.truncate(rank), "Without noise": clean}
for ax, (title, array) in zip(axes, shown.items(), strict=True):
    image = ax.imshow(array, cmap="gray", vmin=-1000, vmax=500)
    decibels = peak_signal_noise_ratio(clean, array, data_range=np.ptp(clean))
    ax.set(title=title if array is clean else f"{title}, {decibels:.1f} dB", xlabel="x (voxels)", ylabel="y (voxels)")
fig.colorbar(image, ax=axes, label="HU", shrink=0.8)
plt.show()

# %%
# Single modes
# ------------
# Each one is the product of a function of y and a function of x.
fig, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="compressed")
for ax, k in zip(axes, (0, 1, 2, 40), strict=True):
    mode = svd.mode(k)
    limit = np.abs(mode).max()
    image = ax.imshow(mode, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set(title=f"Mode {k + 1}: {svd.values[k]:,.0f} HU", xlabel="x (voxels)", ylabel="y (voxels)")
    fig.colorbar(image, ax=ax, shrink=0.8, label="HU")
plt.show()
