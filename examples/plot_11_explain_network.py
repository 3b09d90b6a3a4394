"""
What a small network computes
=============================

A layer of a network has a vector of features at each position. Their singular value decomposition finds the few
directions that the layer uses most: its components. This example trains a small network to find bone in CT slices,
and looks at its components, as maps and by changing them.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

import napari_gsvolume as gsv
from napari_gsvolume.explain import Edit, activations, apply_edits

# %%
# A network to explain
# --------------------
# Three convolutions, trained for a few seconds on the slices of two phantoms. Any ``torch.nn.Module`` would do.
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
print(f"loss {loss.item():.3f}")

# %%
# Its components
# --------------
# ``activations`` runs the network on images that it has not seen, and decomposes what each layer gives. Layers are
# named as in ``network.named_modules()``.
components = activations(network, test, ["0", "2"], k=16)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="compressed")
for name, layer in components.items():
    left.semilogy(np.arange(1, layer.k + 1), layer.values / layer.values[0], "o-", label=f"layer {name}")
    right.plot(np.arange(1, layer.k + 1), 100 * layer.energy, "o-", label=f"layer {name}")
left.set(title="Singular values of activations", xlabel="component", ylabel="relative to the first")
right.set(title="A few components explain nearly everything", xlabel="components", ylabel="energy (%)")
left.legend()
right.legend()
plt.show()

# %%
# Concept maps
# ------------
# A map shows how strongly a component is expressed at each position of one image. That a map looks like bone is a guess
# about what the component stands for; the next example tests such a guess.
layer, number = components["2"], 12
fig, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="compressed")
axes[0].imshow(test[number, 0], cmap="gray", vmin=-1, vmax=0.5)
axes[0].set_title("Image")
for mode, ax in enumerate(axes[1:]):
    concept_map = layer.map(mode, number) * layer.values[mode]
    limit = np.abs(concept_map).max()
    picture = ax.imshow(concept_map, cmap="RdBu_r", vmin=-limit, vmax=limit)
    ax.set_title(f"Component {mode + 1} of layer 2")
    fig.colorbar(picture, ax=ax, shrink=0.8, label="projection")
for ax in axes:
    ax.set(xlabel="x (voxels)", ylabel="y (voxels)")
plt.show()

# %%
# What if there were less of it?
# ------------------------------
# ``Edit`` changes a component while the network runs. The output shows what it is needed for.
with torch.no_grad():
    before = torch.sigmoid(network(test[number : number + 1]))[0, 0]
    changed = []
    for mode in (0, 1):
        with apply_edits(network, Edit.of_mode(layer, mode, how="remove")):
            changed.append(torch.sigmoid(network(test[number : number + 1]))[0, 0])
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="compressed")
titles = ("Output: probability of bone", "without component 1", "without component 2")
for ax, title, image in zip(axes, titles, (before, *changed), strict=True):
    picture = ax.imshow(image, cmap="magma", vmin=0, vmax=1)
    ax.set(title=title, xlabel="x (voxels)", ylabel="y (voxels)")
fig.colorbar(picture, ax=axes, label="probability", shrink=0.8)
plt.show()
