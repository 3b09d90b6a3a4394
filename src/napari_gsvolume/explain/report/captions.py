"""How to read the figures of a report, and what they cannot say: HTML."""

CAPTIONS = {
    "spectra": (
        "Left: how fast the singular values of a layer fall, on a logarithmic scale; a steep curve says that "
        "a few directions hold what the layer says on these images. Right: effective rank, the exponential of "
        "the entropy of the values, as a part of the number of features. <b>It cannot say</b> that a "
        "direction matters to the output, only that it is used; and values of layers of different units, "
        "before and after a normalisation, do not compare."
    ),
    "concepts": (
        "A concept is a direction in the features of a layer (a column of V); its map is the projection of "
        "the activations on it at each position, red where it is expressed one way and blue the other, over "
        "the slice in grey. Signs are a convention. <b>It cannot say</b> what of the image made the layer say "
        "so, as a position sees more than what it lies on; nor is a concept one thing: that it looks like a "
        "structure in a few maps is a guess, to be tested."
    ),
    "jacobian": (
        "A small change of the input along the upper pattern changes what comes out along the lower one, σ "
        "times as much; the patterns of a row are orthogonal. Large σ: directions that the network amplifies, "
        "and in which it is sensitive to noise. <b>It cannot say</b> what larger changes do, and holds at "
        "this input alone. Patterns of nearly equal σ are one choice of many: their span is what counts."
    ),
    "attention": (
        "Left: the cosine between the attention maps of two heads over all inputs looked at; near 1 they look "
        "at the same. Maps are never negative, so that high values are common: 0.9 is not much. Then: how "
        "much of each mode, of the SVD of all maps, each head has, and the modes as maps of which query looks "
        "at which key, mean over inputs. <b>It cannot say</b> that what is looked at is used."
    ),
    "ranks": (
        "How many directions each layer uses, epoch by epoch (activations about their mean). A fall to one is "
        "a collapse; a slow fall is often compression, which need not be bad. <b>It cannot say</b> which of "
        "the two it is."
    ),
    "evolution": (
        "Left: standard deviation of the activations along each component. Middle: cosine of each component's "
        "direction with itself at the first record (solid) and at the one before (dotted): 1 where it has not "
        "turned. Components keep their numbers and colours however their values change. Right: ranks. <b>It "
        "cannot say</b> that a component is the same <em>feature</em>, only that it is the same direction; "
        "and at random initialisation directions mean little."
    ),
    "layers": (
        "Effective rank: the exponential of the entropy of the singular values (Roy &amp; Vetterli 2007). "
        "Stable rank: all energy over the first's. Participation ratio: how many directions share the energy. "
        "Energy: part of the sum of squares in the modes asked for."
    ),
}
