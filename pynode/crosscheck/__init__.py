"""Every backend, algorithm, sensitivity algorithm and oracle present, side by side on one problem."""

from pynode.crosscheck.report import CrosscheckReport, Disagreement, Row
from pynode.crosscheck.run import crosscheck

__all__ = ["CrosscheckReport", "Disagreement", "Row", "crosscheck"]
