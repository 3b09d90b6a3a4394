from .files import load as load
from .files import save as save
from .gaussians import read_gaussians as read_gaussians
from .gaussians import write_gaussians as write_gaussians
from .nifti import NiftiImage as NiftiImage
from .nifti import read_nifti as read_nifti
from .nifti import write_nifti as write_nifti
