"""The figures of the programs: each as PDF for a paper and as PNG for the screen."""

from utils.plots.projections import distance_by_epoch, distributions, mass_by_epoch, mean_by_epoch, profile
from utils.plots.reinit import accuracy_loss, bias_and_criticality
from utils.plots.style import MOST_PANELS, save

__all__ = [
    "MOST_PANELS",
    "accuracy_loss",
    "bias_and_criticality",
    "distance_by_epoch",
    "distributions",
    "mass_by_epoch",
    "mean_by_epoch",
    "profile",
    "save",
]
