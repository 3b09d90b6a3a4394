from .loop import fit as fit
from .loop import fit_steps as fit_steps
from .result import FitResult as FitResult
from .result import FitStep as FitStep
from .result import HistoryPoint as HistoryPoint
from .settings import FitSettings as FitSettings
