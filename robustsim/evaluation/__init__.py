"""Judging metrics: how well does each agree with people, clean and under attack?

A task asks questions, [`evaluate`][robustsim.evaluation.evaluate] puts them to a metric and writes a report:

```python
task = two_afc(read_triplets("triplets.csv"))
report = evaluate(RobustSim.from_pretrained(), task, output="reports", attack=AttackPlan(eps=("4/255",)))
report.results["accuracy"], report.threats
```
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.evaluation.attention import evaluate_attention
    from robustsim.evaluation.calibration import Measured, calibrate
    from robustsim.evaluation.copies import evaluate_copies
    from robustsim.evaluation.detection import evaluate_detection
    from robustsim.evaluation.inversion import evaluate_inversion
    from robustsim.evaluation.reports.comparison import Comparison, compare_reports
    from robustsim.evaluation.reports.plots import plot_iterations, plot_radii
    from robustsim.evaluation.reports.report import Report, load_report
    from robustsim.evaluation.reports.sets import OverSets, over_sets
    from robustsim.evaluation.reports.tables import report_table
    from robustsim.evaluation.retrieval import evaluate_retrieval
    from robustsim.evaluation.run import evaluate
    from robustsim.evaluation.running.plan import ATTACKS, AttackPlan
    from robustsim.evaluation.sheet import draw_neighbours
    from robustsim.evaluation.statistics import Interval
    from robustsim.evaluation.subjects import load_metric
    from robustsim.evaluation.tasks.distortions import DISTORTIONS, distort
    from robustsim.evaluation.tasks.ladder import distortion_ladder
    from robustsim.evaluation.tasks.questions import just_noticeable, odd_one_out, quality, two_afc

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "ATTACKS",
    "AttackPlan",
    "Comparison",
    "DISTORTIONS",
    "Interval",
    "Measured",
    "OverSets",
    "Report",
    "calibrate",
    "compare_reports",
    "distort",
    "distortion_ladder",
    "draw_neighbours",
    "evaluate",
    "evaluate_attention",
    "evaluate_copies",
    "evaluate_detection",
    "evaluate_inversion",
    "evaluate_retrieval",
    "just_noticeable",
    "load_metric",
    "load_report",
    "odd_one_out",
    "over_sets",
    "plot_iterations",
    "plot_radii",
    "quality",
    "report_table",
    "two_afc",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ATTACKS": "running.plan",
        "AttackPlan": "running.plan",
        "Comparison": "reports.comparison",
        "DISTORTIONS": "tasks.distortions",
        "Interval": "statistics",
        "Measured": "calibration",
        "OverSets": "reports.sets",
        "Report": "reports.report",
        "calibrate": "calibration",
        "compare_reports": "reports.comparison",
        "distort": "tasks.distortions",
        "distortion_ladder": "tasks.ladder",
        "draw_neighbours": "sheet",
        "evaluate": "run",
        "evaluate_attention": "attention",
        "evaluate_copies": "copies",
        "evaluate_detection": "detection",
        "evaluate_inversion": "inversion",
        "evaluate_retrieval": "retrieval",
        "just_noticeable": "tasks.questions",
        "load_metric": "subjects",
        "load_report": "reports.report",
        "odd_one_out": "tasks.questions",
        "over_sets": "reports.sets",
        "plot_iterations": "reports.plots",
        "plot_radii": "reports.plots",
        "quality": "tasks.questions",
        "report_table": "reports.tables",
        "two_afc": "tasks.questions",
    },
)
