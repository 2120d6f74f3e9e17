"""What came out: report.json, a table on the terminal and one HTML file. Knows no torch."""

from edgeprune.report.html import write_html
from edgeprune.report.model import (
    Agreement,
    Figures,
    GroupWidth,
    KernelCost,
    Layer,
    LayerError,
    LayerZeros,
    Memory,
    OnnxFacts,
    Prices,
    Quantization,
    Rate,
    Report,
    SolverFacts,
    Sparsity,
    StepFigures,
    Surgery,
    Validation,
)
from edgeprune.report.terminal import print_report

__all__ = [
    "Agreement",
    "Figures",
    "GroupWidth",
    "KernelCost",
    "Layer",
    "LayerError",
    "LayerZeros",
    "Memory",
    "OnnxFacts",
    "Prices",
    "Quantization",
    "Rate",
    "Report",
    "SolverFacts",
    "Sparsity",
    "StepFigures",
    "Surgery",
    "Validation",
    "print_report",
    "write_html",
]
