"""
Test what a network uses: probes and TCAV
=========================================

Two questions that are often mixed up. Can lung be *read* in a layer of a network? A linear probe answers that. Does
the output *depend* on lung? Testing with concept activation vectors (TCAV) answers that. Both compare with chance.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import binary_opening
from torch import nn

import napari_gsvolume as gsv
from napari_gsvolume.explain import Examples, activations, linear_probe, tcav

# %%
# A network that finds bone in CT slices, trained for a few seconds, as in the example before.
volumes = [gsv.phantoms.anatomical_phantom(48, seed=seed)[0] for seed in range(3)]
images = [torch.from_numpy(volume[8:40, None] / 1000) for volume in volumes]
train, test = torch.cat(images[:2]), images[2]

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(1, 16, 5, padding=2),
    nn.ReLU(),
    nn.Conv2d(16, 16, 5, padding=2),
    nn.ReLU(),
    nn.Conv2d(16, 1, 1),
)
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for _ in range(150):
    batch = train[torch.randperm(len(train))[:16]]
    loss = nn.functional.binary_cross_entropy_with_logits(network(batch), (batch > 0.22).float())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# Labels
# ------
# Two concepts, painted as in a Labels layer: 1 where the concept is, 0 where it is not.
hounsfield = 1000 * test[:, 0].numpy()
lung = binary_opening((hounsfield > -950) & (hounsfield < -700), np.ones((1, 3, 3)))
concepts = {"bone": hounsfield > 220, "lung": lung}
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="compressed")
axes[0].imshow(hounsfield[24], cmap="gray", vmin=-1000, vmax=500)
axes[0].set_title("A slice")
for ax, (name, labels) in zip(axes[1:], concepts.items(), strict=True):
    ax.imshow(labels[24], cmap="gray")
    ax.set_title(f"Painted concept: {name}")
for ax in axes:
    ax.set(xlabel="x (voxels)", ylabel="y (voxels)")
plt.show()

# %%
# Can it be read there?
# ---------------------
# A linear classifier on the features of each layer; whole images are held out. An AUC of 0.5 is chance.
layers = ["0", "2", "4"]
components = activations(network, test, layers, k=16, max_samples=1000)
aucs = {name: [] for name in concepts}
for name, labels in concepts.items():
    for layer in layers:
        probe = linear_probe(components[layer], list(labels.astype(int)), permutations=5)
        aucs[name].append(probe.measures["auc"].mean)
fig, ax = plt.subplots(figsize=(6, 3.2), layout="compressed")
for k, (name, values) in enumerate(aucs.items()):
    ax.bar(np.arange(3) + 0.35 * (k - 0.5), values, 0.33, label=name)
ax.axhline(0.5, color="k", linestyle="--", label="chance")
ax.set(title="Linear probes", xlabel="layer", ylabel="AUC on held-out images", ylim=(0.4, 1.2))
ax.set_xticks(range(3), layers)
ax.legend(loc="upper center", ncols=3)
plt.show()

# %%
# Does the output depend on it?
# -----------------------------
# The concept's direction in the layer is compared with directions of random concepts. The sensitivity is the mean
# derivative of the output, here the mean logit of bone, along the direction.
fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="compressed")
for ax, (name, labels) in zip(axes, concepts.items(), strict=True):
    [test_of_layer] = tcav(
        network,
        test,
        ["2"],
        Examples(test, list(labels.astype(int))),
        lambda y: y.mean((1, 2, 3)),
        randoms=30,
        max_samples=1000,
    ).values()
    ax.hist(test_of_layer.random_sensitivities, bins=12, color="0.7", label="random concepts")
    ax.axvline(test_of_layer.sensitivity, color="tab:red", label=name)
    ax.set(title=f"{name}: p = {test_of_layer.p_sensitivity:.3f}", xlabel="sensitivity of the output", ylabel="number")
    ax.legend()
plt.show()

# %%
# Bone can be read in every layer. Lung can be read in the first two, less well, and hardly in the last: the network
# drops what it does not need. The output depends on the direction of bone more than on any random one; for lung the
# test finds no such difference. That it finds none does not prove that there is none.
