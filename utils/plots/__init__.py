"""The figures of the programs: each as PDF for a paper and as PNG for the screen."""

# ruff: noqa: F401 (for the programs)
from utils.plots.projections import distance_by_epoch, distributions, mass_by_epoch, mean_by_epoch, profile
from utils.plots.reinit import accuracy_loss, bias_and_criticality
from utils.plots.style import MOST_PANELS, save
