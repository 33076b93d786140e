"""The ablation lab: from one question in YAML to a verdict with an interval, a cost and a picture."""

from nanovlm.lab.ablation import Ablation, load_ablation
from nanovlm.lab.compare import compare
from nanovlm.lab.comparison import Comparison
from nanovlm.lab.gathering import gather
from nanovlm.lab.prospect import plan_ablation
from nanovlm.lab.report.writer import write_report
from nanovlm.lab.results import Result
from nanovlm.lab.sweep.conductor import run_sweep

__all__ = [
    "Ablation",
    "Comparison",
    "Result",
    "compare",
    "gather",
    "load_ablation",
    "plan_ablation",
    "run_sweep",
    "write_report",
]
