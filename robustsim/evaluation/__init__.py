"""Judging metrics: how well does each agree with people, clean and under attack?

A task asks questions, :func:`evaluate` puts them to a metric and writes a report::

    task = two_afc(read_triplets("triplets.csv"))
    report = evaluate(RobustSim.from_pretrained(), task, output="reports", attack=AttackPlan(eps=("4/255",)))
    report.results["accuracy"], report.threats
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.evaluation.comparison import Comparison, compare_reports
    from robustsim.evaluation.distortions import DISTORTIONS, distort
    from robustsim.evaluation.ladder import distortion_ladder
    from robustsim.evaluation.plan import ATTACKS, AttackPlan
    from robustsim.evaluation.plots import plot_iterations, plot_radii
    from robustsim.evaluation.questions import just_noticeable, odd_one_out, quality, two_afc
    from robustsim.evaluation.reports import Report, load_report
    from robustsim.evaluation.run import evaluate
    from robustsim.evaluation.statistics import Interval
    from robustsim.evaluation.subjects import load_metric
    from robustsim.evaluation.tables import report_table

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "ATTACKS",
    "AttackPlan",
    "Comparison",
    "DISTORTIONS",
    "Interval",
    "Report",
    "compare_reports",
    "distort",
    "distortion_ladder",
    "evaluate",
    "just_noticeable",
    "load_metric",
    "load_report",
    "odd_one_out",
    "plot_iterations",
    "plot_radii",
    "quality",
    "report_table",
    "two_afc",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ATTACKS": "plan",
        "AttackPlan": "plan",
        "Comparison": "comparison",
        "DISTORTIONS": "distortions",
        "Interval": "statistics",
        "Report": "reports",
        "compare_reports": "comparison",
        "distort": "distortions",
        "distortion_ladder": "ladder",
        "evaluate": "run",
        "just_noticeable": "questions",
        "load_metric": "subjects",
        "load_report": "reports",
        "odd_one_out": "questions",
        "plot_iterations": "plots",
        "plot_radii": "plots",
        "quality": "questions",
        "report_table": "tables",
        "two_afc": "questions",
    },
)
