"""`python main.py dashboard`: a W&B workspace whose panels compare runs; without a server, the list of its panels."""

import argparse
import importlib
import sys
from dataclasses import dataclass
from typing import Any

STEP = "trainer/global_step"
NAME = "ViX"
EPILOG = """\
  python main.py dashboard --project vix              makes the workspace, with the key of `wandb login`
  python main.py dashboard --list                     lists its panels, to be made by hand
It needs W&B's package wandb-workspaces: pip install wandb-workspaces
"""


@dataclass(frozen=True)
class Panel:
    """One panel of the workspace.

    Args:
        section: Where it is.
        kind: `lines` over the step, `bars` by group, `scatter` of runs, `pictures`, a `table`, or a `confusion` matrix.
        title: What it is called.
        y: The metrics, or keys of pictures and tables, that it shows.
        x: For `scatter` a fact of the configuration.
    """

    section: str
    kind: str
    title: str
    y: tuple[str, ...]
    x: str = STEP


PANELS = (
    Panel("Learning curves", "lines", "Accuracy on validation", ("val/top1",)),
    Panel("Learning curves", "lines", "Loss on validation", ("val/loss",)),
    Panel("Learning curves", "lines", "Loss on training, with label smoothing", ("train/loss",)),
    Panel("Learning curves", "lines", "Accuracy on training", ("train/top1", "train/top1_mixed")),
    Panel("Learning curves", "lines", "Learning rate", ("lr",)),
    Panel("Best epoch", "bars", "Accuracy on validation, best epoch", ("best/val/top1",)),
    Panel("Best epoch", "scatter", "Accuracy against parameters", ("best/val/top1",), "facts.parameters"),
    Panel("Best epoch", "scatter", "Accuracy against operations", ("best/val/top1",), "facts.flops"),
    Panel("Predictions", "table", "Samples", ("best/samples",)),
    Panel("Predictions", "pictures", "Misclassified", ("best/misclassified",)),
    Panel("Predictions", "confusion", "Confusion matrix", ("best/confusion_table",)),
    Panel("Predictions", "table", "By class", ("best/classes",)),
)


def parser() -> argparse.ArgumentParser:
    """Makes the command line."""
    made = argparse.ArgumentParser(
        prog="main.py dashboard",
        description="Makes a W&B workspace that compares the runs of a project.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--project", default="vix", help="project of the runs (default vix)")
    made.add_argument("--entity", help="user or team; left out, W&B's default")
    made.add_argument("--list", action="store_true", help="list the panels instead of making them")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Makes the workspace and prints its address, or lists the panels.

    Args:
        arguments: As on the command line, which is taken where they are left out.

    Returns:
        The exit code: 0; 1 where W&B cannot be reached or refuses; 2 where its package is missing.
    """
    options = parser().parse_args(arguments)
    if options.list:
        print(as_table())
        return 0
    # `--help` need not wait for these.
    from vix.training.loggers import wandb_mode

    mode, why = wandb_mode("online")
    if mode != "online":
        print(f"no dashboard: {why}. The panels, to be made by hand:\n", file=sys.stderr)
        print(as_table())
        return 1
    try:
        from wandb_workspaces import workspaces
    except ImportError:
        print("dashboard needs W&B's package wandb-workspaces: pip install wandb-workspaces", file=sys.stderr)
        return 2
    from wandb.errors import Error

    try:
        made = workspace(workspaces, options.entity or _default_entity(), options.project).save()
    except (Error, OSError, ValueError) as error:
        print(f"W&B refused the dashboard: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    print(made.url)
    return 0


def as_table() -> str:
    """The panels as a Markdown table."""
    lines = ["| section | panel | kind | shows | over |", "|---|---|---|---|---|"]
    for panel in PANELS:
        over = f"`{panel.x}`" if panel.kind in ("lines", "scatter") else ""
        shows = ", ".join(f"`{name}`" for name in panel.y)
        lines.append(f"| {panel.section} | {panel.title} | {panel.kind} | {shows} | {over} |")
    return "\n".join(lines)


def workspace(workspaces: Any, entity: str, project: str) -> Any:
    """The workspace, not yet saved: a section a topic, runs grouped by system.

    Args:
        workspaces: The module `wandb_workspaces.workspaces`.
        entity: User or team.
        project: Of the runs.
    """
    sections = [
        workspaces.Section(name=name, panels=[_made(panel) for panel in PANELS if panel.section == name], is_open=True)
        for name in dict.fromkeys(panel.section for panel in PANELS)
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP),
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Config("facts.system")]),
    )


def _made(panel: Panel) -> Any:
    # The package names what it exports only when it runs.
    reports: Any = importlib.import_module("wandb_workspaces.reports.v2")

    if panel.kind == "lines":
        return reports.LinePlot(title=panel.title, x=panel.x, y=list(panel.y))
    if panel.kind == "bars":
        return reports.BarPlot(title=panel.title, metrics=list(panel.y))
    if panel.kind == "scatter":
        return reports.ScatterPlot(title=panel.title, x=reports.Config(panel.x), y=reports.SummaryMetric(panel.y[0]))
    if panel.kind == "table":
        # the table's own key is its title
        return reports.WeavePanelSummaryTable(table_name=panel.y[0])
    if panel.kind == "confusion":
        fields = {name: name for name in ("Actual", "Predicted", "nPredictions")}
        return reports.CustomChart(
            query={"summaryTable": {"tableKey": panel.y[0]}},
            chart_name="wandb/confusion_matrix/v1",
            chart_fields=fields,
            chart_strings={"title": panel.title},
        )
    return reports.MediaBrowser(title=panel.title, media_keys=list(panel.y))


def _default_entity() -> str:
    import wandb

    return str(wandb.Api().default_entity)
