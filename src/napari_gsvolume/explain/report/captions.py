"""Captions of the figures of a report, as HTML: how to read them, and their limits."""

CAPTIONS = {
    "spectra": (
        "Left: singular values of each layer on a logarithmic scale; in a steep spectrum a few components "
        "explain most of the activation variance on these images. Right: effective rank, the exponential of "
        "the entropy of the singular values, as a fraction of the number of features. <b>Limits:</b> a "
        "component that is used need not affect the output, and values of layers with different units, before "
        "and after a normalization, cannot be compared."
    ),
    "concepts": (
        "A concept is a direction in the features of a layer (a column of V). Its map is the projection of "
        "the activations on it at each position, red for positive and blue for negative values, over the "
        "slice in grey. The sign is a convention. <b>Limits:</b> the receptive field of a position is larger "
        "than its voxels, so a map does not show which part of the image causes the activation; and the "
        "likeness of a concept to a structure in a few maps is a hypothesis, to be tested."
    ),
    "jacobian": (
        "A small change of the input along the upper pattern changes the output along the lower one, σ times "
        "as much; the patterns of a row are orthogonal. Large σ: directions that the network amplifies, and "
        "along which it is sensitive to noise. <b>Limits:</b> the Jacobian holds for small changes of this "
        "input alone. Patterns of nearly equal σ are one choice of many: only their span is determined."
    ),
    "attention": (
        "Left: cosine between the attention maps of two heads over all inputs; 1 for equal maps. Maps are "
        "never negative, so 0.9 is not a high value. Then: weights of the heads in each mode of the SVD of "
        "all maps, and the modes as maps of queries and keys, mean over inputs. <b>Limits:</b> attended "
        "tokens need not be used."
    ),
    "ranks": (
        "Effective rank of each layer by epoch (activations about their mean). A fall to one is a collapse; a "
        "slow fall is often compression, which need not be harmful. <b>Limits:</b> the rank alone does not "
        "distinguish the two."
    ),
    "evolution": (
        "Left: standard deviation of the activations along each component. Middle: cosine of each component "
        "with itself in the first record (solid) and in the previous one (dotted); 1 without rotation. "
        "Components keep their numbers and colours however their values change. Right: ranks. <b>Limits:</b> "
        "a component is the same direction, not necessarily the same <em>feature</em>; and directions mean "
        "little at random initialization."
    ),
    "layers": (
        "Effective rank: exponential of the entropy of the singular values (Roy &amp; Vetterli 2007). Stable "
        "rank: total energy over that of the first component. Participation ratio: number of directions that "
        "share the energy. Energy: fraction of the sum of squares in the requested components."
    ),
}
