"""The figures of the programs: each as PDF for a paper and as PNG for the screen."""

from utils.plots.projections import distance_by_epoch, distributions, mass_by_epoch, mean_by_epoch
from utils.plots.reinit import accuracy_loss, bias_and_criticality
from utils.plots.style import save

__all__ = [
    "accuracy_loss",
    "bias_and_criticality",
    "distance_by_epoch",
    "distributions",
    "mass_by_epoch",
    "mean_by_epoch",
    "save",
]
