"""Findings about a network, and their thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...settings import Count, NotNegative

Kind = Literal[
    "collapse", "dead units", "redundant units", "redundant heads", "sharpening", "drift", "new concept", "attribute"
]
_Part = Annotated[float, Field(gt=0, lt=1)]


class Thresholds(BaseModel):
    """Reporting thresholds. Findings that involve chance must be both large and significant.

    Examples
    --------
    >>> from napari_gsvolume.explain import Thresholds
    >>> Thresholds(alpha=0.01).redundancy
    0.98
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: _Part = Field(
        0.05, description="Probability of any false finding of one kind at one epoch, over all layers and components"
    )
    permutations: Annotated[int, Field(ge=19, le=100_000)] = Field(
        999, description="Number of permutations of a test; the smallest p-value is 1 / (permutations + 1)"
    )
    collapse_share: _Part = Field(
        0.95, description="Collapse threshold: fraction of the variance of a layer in one direction"
    )
    collapse_rank: _Part = Field(
        0.02, description="Collapse threshold: effective rank relative to the number of features"
    )
    dead_level: _Part = Field(1e-3, description="Dead-unit threshold, relative to the most active unit")
    dead_share: _Part = Field(0.1, description="Reporting threshold of dead units: their fraction of a layer")
    redundancy: _Part = Field(0.98, description="Redundancy threshold: |correlation| of two units or attention heads")
    energy: _Part = Field(0.05, description="Smallest fraction of the variance of a layer in a leading component")
    trace: _Part = Field(
        1e-3, description="Smallest fraction of the variance in components that are tested for attributes and shifts"
    )
    new_cosine: _Part = Field(
        0.5, description="New-concept threshold: largest cosine with the leading components of recent epochs"
    )
    recent: Count = Field(3, description="Number of recent epochs in the search for new concepts")
    drift_shift: NotNegative = Field(
        0.5,
        description="Drift threshold: shift of the mean of a component in standard deviations over inputs",
    )
    drift_overlap: _Part = Field(0.8, description="Drift threshold: overlap of the subspaces of two domains")
    sharpening: NotNegative = Field(
        0.15, description="Sharpening threshold: excess of the first singular value on training over held-out inputs"
    )
    correlation: NotNegative = Field(
        0.3, description="Association threshold: |correlation| of a component with an attribute"
    )


@dataclass(frozen=True)
class Finding:
    """Finding: a statistic of a layer that exceeds its threshold.

    Attributes
    ----------
    kind : str
    layer : str
        Name of the module.
    sentence : str
        Finding in words, with its numbers.
    statistic, threshold : float
        Statistic, and its threshold.
    component : int, or None
        Number of the component, from 0, if it is about one.
    epoch : float, or None
        Epoch of the finding; the first one of a persistent finding.
    subject : str
        Attribute, domain, or units.
    interval : (float, float), or None
        Confidence interval of the statistic; all intervals of one call hold together with probability ``1 - alpha``.
    p_value : float, or None
        p-value, corrected for all tests of the call.
    """

    kind: Kind
    layer: str
    sentence: str
    statistic: float
    threshold: float
    component: int | None = None
    epoch: float | None = None
    subject: str = ""
    interval: tuple[float, float] | None = None
    p_value: float | None = None

    def __str__(self) -> str:
        return self.sentence
