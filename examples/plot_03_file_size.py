"""
Small files: how much quality for how many bytes
================================================

A fit can be asked for a file size instead of a number of Gaussians. This example writes ``.gsv`` files 100 to 800
times smaller than the volume in float32, and plots the rate-distortion curve.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import napari_gsvolume as gsv

volume, grid = gsv.phantoms.anatomical_phantom(40)

# %%
# ``ratio`` counts 4 bytes for each voxel. The fit chooses the number of Gaussians, rounds them as coarsely as the size
# asks for, and fits again what is still free. Quality is that of the file: saving changes nothing further.
ratios = (100, 200, 400, 800)
results = [gsv.fit(volume, grid=grid, ratio=ratio, iterations=12) for ratio in ratios]

with tempfile.TemporaryDirectory() as folder:
    for ratio, result in zip(ratios, results, strict=True):
        path = Path(folder) / "body.gsv"
        gsv.save(path, result.gaussians)
        size = path.stat().st_size
        print(
            f"ratio {ratio:3d}: {size:6,} bytes, {result.n_gaussians:4d} Gaussians of "
            f"{size / result.n_gaussians:.1f} bytes, {result.psnr_db:.1f} dB"
        )
    again = gsv.load(path)  # and back: the file is all it takes
print(len(again), "Gaussians read back, background", again.background)

# %%
# The curve is nearly straight over the logarithm of the size: each doubling of the bytes gains about as many dB.
fig, ax = plt.subplots(figsize=(6, 3.6), layout="compressed")
sizes = [result.n_bytes for result in results]
ax.semilogx(sizes, [result.psnr_db for result in results], "o-")
for ratio, result in zip(ratios, results, strict=True):
    ax.annotate(f"{ratio} : 1", (result.n_bytes, result.psnr_db), (-2, -14), textcoords="offset points")
ax.set(title=f"A volume of {volume.nbytes:,} bytes in smaller files", xlabel="file size (bytes)", ylabel="PSNR (dB)")
ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.margins(0.2)
plt.show()

# %%
# What goes first, as files get smaller, is fine detail: vessels of the lung, then the edges of ribs.
middle = volume.shape[1] // 2
fig, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="compressed")
fits = {f"{ratios[k]} : 1, {results[k].psnr_db:.1f} dB": results[k].reconstruction for k in (0, 1, 3)}
for ax, (title, array) in zip(axes, {"Volume": volume, **fits}.items(), strict=True):
    image = ax.imshow(array[:, middle], origin="lower", cmap="gray", vmin=-1000, vmax=600)
    ax.set(title=title, xlabel="x (voxels)", ylabel="z (voxels)")
fig.colorbar(image, ax=axes, label="HU", shrink=0.8)
plt.show()
