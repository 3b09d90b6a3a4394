"""
A volume from few X-rays
========================

Filtered back-projection needs hundreds of views. With 20 it leaves streaks. This example simulates X-rays of a
phantom, adds the noise of a detector, and reconstructs the volume with a prior on what volumes look like.
"""

import matplotlib.pyplot as plt
import numpy as np
from skimage.metrics import peak_signal_noise_ratio
from skimage.transform import iradon

import napari_gsvolume as gsv
from napari_gsvolume.tomography import add_noise, circular_scan, hounsfield_to_attenuation, spread_angles

# %%
# X-rays add up attenuation, in 1/mm, along each ray. Hounsfield units are converted first: water attenuates 0.0193/mm
# at 70 keV.
hounsfield, grid = gsv.phantoms.anatomical_phantom(33)
volume = np.asarray(hounsfield_to_attenuation(hounsfield))
voxel = float(grid.voxel_size[0])

# %%
# Twenty views
# ------------
# The source circles the body by 180 degrees in 20 steps, with parallel rays. Each pixel counts photons; of 100,000 that
# leave the source, those that are not absorbed arrive, with Poisson noise.
angles = spread_angles(20, 180)
scan = circular_scan(volume.shape, voxel, angles, pixels=(49, 33))
projections = add_noise(gsv.project(volume, scan).images, photons=1e5, depth=None)
print(projections.shape, "views, detector rows, detector columns")

fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="compressed")
for ax, k in zip(axes, (0, 5, 10), strict=True):
    image = ax.imshow(projections[k], origin="lower", cmap="gray_r")
    ax.set(title=f"View at {angles[k]:.0f} degrees", xlabel="detector column", ylabel="detector row")
fig.colorbar(image, ax=axes, label="line integral of attenuation (no unit)")
plt.show()

# %%
# The baseline: filtered back-projection
# --------------------------------------
# scikit-image's, slice by slice. Its angles turn the other way round.
baseline = np.stack([iradon(projections[:, row].T, -angles, output_size=33, circle=False) / voxel for row in range(33)])

# %%
# The reconstruction
# ------------------
# Least squares on the measurements, weighted by their noise, alternates with a denoiser that knows that small blocks of
# a volume repeat (BM4D). Then Gaussians are fitted to the result.
found = gsv.reconstruct(projections, scan=scan, grid=grid, iterations=25, fit_iterations=25)
print(f"{len(found.gaussians)} Gaussians; data fidelity {found.data_fidelity:.2f}, where 1 is the level of the noise")

# %%
# Streaks are gone, and small things remain.
span = float(np.ptp(volume))
fig, axes = plt.subplots(1, 4, figsize=(13, 3.4), layout="compressed")
shown = {"Truth": volume, "Filtered back-projection": baseline, "Reconstruction, voxels": found.voxels}
shown["Reconstruction, Gaussians"] = found.reconstruction
for ax, (title, array) in zip(axes, shown.items(), strict=True):
    image = ax.imshow(array[11], cmap="gray", vmin=0, vmax=0.035)
    quality = "" if array is volume else f"\n{peak_signal_noise_ratio(volume, array, data_range=span):.1f} dB"
    ax.set(title=title + quality, xlabel="x (voxels)", ylabel="y (voxels)")
fig.colorbar(image, ax=axes, label="attenuation (1/mm)", shrink=0.8)
plt.show()
