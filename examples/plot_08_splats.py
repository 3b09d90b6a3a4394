"""
Train splats to match rendered views
====================================

Splats are Gaussians with a colour and an opacity. Trained to match the views of a direct volume rendering, they show
new views faster, and open in viewers of 3D Gaussian Splatting. This example trains a few for seconds; real models
take minutes.
"""

import time

import matplotlib.pyplot as plt
import numpy as np
from skimage.metrics import peak_signal_noise_ratio

import napari_gsvolume as gsv
from napari_gsvolume.rendering import Scene

volume, grid = gsv.phantoms.anatomical_phantom(48)
scene = Scene(volume, np.asarray(grid.voxel_size), gsv.TransferFunction.from_preset("ct-bone", volume))

# %%
# Each iteration renders the splats from one camera, compares with the reference, and follows the gradient. A few views
# are held out of the training, and tell how good the splats are elsewhere.
trained = gsv.train_splats(
    scene, gaussians=1500, views=16, image_size=64, sh_degree=1, iterations=300, held_out_views=3, device="cpu"
)
print(f"{len(trained.splats)} splats, held-out views: PSNR {trained.psnr_db:.1f} dB, SSIM {trained.ssim:.3f}")

# %%
# New views
# ---------
# None of these cameras was used in training.
cameras = scene.held_out_cameras(3, 128)
start = time.perf_counter()
references = np.stack(list(scene.reference_images(cameras)))
middle = time.perf_counter()
views = np.clip(trained.splats.render(cameras).detach().numpy(), 0, 1)
end = time.perf_counter()
print(f"volume rendering {1000 * (middle - start) / 3:.0f} ms a view, splats {1000 * (end - middle) / 3:.0f} ms")

fig, axes = plt.subplots(2, 3, figsize=(9, 6.4), layout="compressed")
for column, reference, view in zip(axes.T, references, views, strict=True):
    column[0].imshow(reference)
    column[0].set_title("Volume rendering")
    column[1].imshow(view)
    column[1].set_title(f"Splats, {peak_signal_noise_ratio(reference, view, data_range=1.0):.1f} dB")
for ax in axes.flat:
    ax.axis("off")
plt.show()
