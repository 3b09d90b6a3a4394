"""
Train splats to match rendered views
====================================

Splats are Gaussians with a colour and an opacity. Trained to match the views of a direct volume rendering, they show
new views in a fraction of the time, and open in viewers of 3D Gaussian Splatting. This example trains a few for
seconds; real models take minutes.
"""

import time

import matplotlib.pyplot as plt
import numpy as np

from napari_gsvolume.metrics import psnr_between
from napari_gsvolume.phantoms import anatomical_phantom
from napari_gsvolume.rendering.scene import Scene
from napari_gsvolume.rendering.splats.training import train
from napari_gsvolume.rendering.volume.transfer_functions import preset

volume, grid = anatomical_phantom(48)
scene = Scene(volume, np.asarray(grid.voxel_size), preset("ct-bone", volume))

# %%
# Each iteration renders the splats from one camera, compares with the reference, and follows the gradient. A few views
# are held out of the training, and tell how good the splats are elsewhere.
trained = train(scene, gaussians=1500, views=16, size=64, sh_degree=1, iterations=200, hold_out=3, device="cpu")
last = [point for point in trained.history if point.psnr_db is not None][-1]
print(f"{last.n_gaussians} splats, held-out views: PSNR {last.psnr_db:.1f} dB, SSIM {last.ssim:.3f}")

fig, ax = plt.subplots(figsize=(6, 3.2), layout="compressed")
points = [point for point in trained.history if point.psnr_db is not None]
ax.plot([p.iteration for p in points], [p.psnr_db for p in points], "o-")
ax.set(title="Quality of views that were held out", xlabel="iteration", ylabel="PSNR (dB)")
ax.grid(alpha=0.3)
plt.show()

# %%
# New views
# ---------
# None of these cameras was used in training.
cameras = scene.held_out(3, 128)
start = time.perf_counter()
references = np.stack(list(scene.images(cameras)))
middle = time.perf_counter()
views = np.clip(trained.splats.render(cameras).detach().numpy(), 0, 1)
end = time.perf_counter()
print(f"volume rendering {1000 * (middle - start) / 3:.0f} ms a view, splats {1000 * (end - middle) / 3:.0f} ms")

fig, axes = plt.subplots(2, 3, figsize=(9, 6.4), layout="compressed")
for column, reference, view in zip(axes.T, references, views, strict=True):
    column[0].imshow(reference)
    column[0].set_title("Volume rendering")
    column[1].imshow(view)
    column[1].set_title(f"Splats, {psnr_between(reference, view, 1.0):.1f} dB")
for ax in axes.flat:
    ax.axis("off")
plt.show()
