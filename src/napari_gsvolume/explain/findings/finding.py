"""What is reported of a network, and from when on: findings, and the thresholds that make them."""

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
    """From when on something is reported. Where there is chance, both a size and a significance are asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: _Part = Field(
        0.05, description="Probability of any false finding of one kind at one epoch, over all layers and components"
    )
    permutations: Annotated[int, Field(ge=19, le=100_000)] = Field(
        999, description="Random assignments that a significance is judged by; a p-value is 1 / (this + 1) at least"
    )
    collapse_share: _Part = Field(
        0.95, description="A layer has collapsed if this part of its variance is in one direction"
    )
    collapse_rank: _Part = Field(0.02, description="Or if its effective rank is below this part of its features")
    dead_level: _Part = Field(1e-3, description="A unit is dead if it varies by less than this part of the liveliest")
    dead_share: _Part = Field(0.1, description="Dead units are reported if they are this part of a layer")
    redundancy: _Part = Field(0.98, description="Two units, or attention heads, are one if |correlation| is this high")
    energy: _Part = Field(0.05, description="Components count, and are used, from this part of a layer's variance on")
    trace: _Part = Field(1e-3, description="Components of less than this part are not tested for attributes and shifts")
    new_cosine: _Part = Field(
        0.5, description="A component is new if its cosine with those that counted at each recent epoch is below this"
    )
    recent: Count = Field(3, description="How many epochs before one are recent")
    drift_shift: NotNegative = Field(
        0.5,
        description="Domains have drifted if a component's mean moved by so many standard deviations of inputs",
    )
    drift_overlap: _Part = Field(0.8, description="Or if the subspaces that they use overlap by less than this part")
    sharpening: NotNegative = Field(
        0.15, description="A layer is sharp if its first singular value where trained is this part above that held out"
    )
    correlation: NotNegative = Field(0.3, description="A component follows an attribute from this |correlation| on")


@dataclass(frozen=True)
class Finding:
    """Something that a threshold was crossed for.

    Attributes
    ----------
    kind : str
    layer : str
        Name of the module.
    sentence : str
        All of it in words, with its numbers.
    statistic, threshold : float
        What was measured, and what it was compared with.
    component : int, or None
        Which, from 0, where it is about one.
    epoch : float, or None
        When: of what may last, since when on.
    subject : str
        The attribute, the domain, or the units.
    interval : (float, float), or None
        Of the statistic, where it has one: all intervals of one call hold together with probability ``1 - alpha``.
    p_value : float, or None
        Corrected for all that was tested with it.
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
