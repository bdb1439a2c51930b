"""Judging metrics: how well does each agree with people, clean and under attack?

A task asks questions, :func:`evaluate` puts them to a metric and writes a report::

    task = forced_choice(read_triplets("triplets.csv"))
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
    from robustsim.evaluation.questions import forced_choice, just_noticeable, odd_one_out, quality
    from robustsim.evaluation.reports import Report, load_report
    from robustsim.evaluation.run import evaluate
    from robustsim.evaluation.statistics import Interval
    from robustsim.evaluation.subjects import Judged, judged, load_judged
    from robustsim.evaluation.tables import report_table

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "ATTACKS",
    "AttackPlan",
    "Comparison",
    "DISTORTIONS",
    "Interval",
    "Judged",
    "Report",
    "compare_reports",
    "distort",
    "distortion_ladder",
    "evaluate",
    "forced_choice",
    "judged",
    "just_noticeable",
    "load_judged",
    "load_report",
    "odd_one_out",
    "plot_iterations",
    "plot_radii",
    "quality",
    "report_table",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ATTACKS": "plan",
        "AttackPlan": "plan",
        "Comparison": "comparison",
        "DISTORTIONS": "distortions",
        "Interval": "statistics",
        "Judged": "subjects",
        "Report": "reports",
        "compare_reports": "comparison",
        "distort": "distortions",
        "distortion_ladder": "ladder",
        "evaluate": "run",
        "forced_choice": "questions",
        "judged": "subjects",
        "just_noticeable": "questions",
        "load_judged": "subjects",
        "load_report": "reports",
        "odd_one_out": "questions",
        "plot_iterations": "plots",
        "plot_radii": "plots",
        "quality": "questions",
        "report_table": "tables",
    },
)
