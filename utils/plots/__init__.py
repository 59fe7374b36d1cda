"""The figures of the programs: each as PDF for a paper and as PNG for the screen."""

# ruff: noqa: F401 (for the programs)
from utils.plots.projections import by_epoch, distance_by_epoch, distributions, profile
from utils.plots.reinit import accuracy_loss, bias_and_criticality
from utils.plots.style import MOST_PANELS, save
