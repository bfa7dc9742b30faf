"""The measures of a tuning stage, as a section with one small chart for each."""

from puna.core.page import section
from puna.core.plots import Series, line_chart
from puna.train.report.run_data import Points, Run, points

_NOTE = "Measures of the stage by name: during training, and on held-out data."


def stage_measures(run: Run) -> str:
    """Render the section; empty for a run without measures of its own, such as pretraining."""
    events = [*run.train, *run.evals]
    names = dict.fromkeys(name for event in events for name in event.get("metrics") or {})
    charts = [_chart(name, _of(run, "train", name), _of(run, "evals", name)) for name in names]
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return section("What the stage measured", _NOTE, f'<div class="grid">{figures}</div>') if figures else ""


def _of(run: Run, kind: str, name: str) -> Points:
    rows = [{"step": event["step"], name: (event.get("metrics") or {}).get(name)} for event in getattr(run, kind)]
    return points(rows, name)


def _chart(name: str, training: Points, heldout: Points) -> str:
    series = [Series("training", training), Series("held-out", heldout, "second")]
    series = [one for one in series if len(one.points) > 1]
    if not series:
        return ""
    values = [value for one in series for _, value in one.points]
    first, last = series[-1].points[0], series[-1].points[-1]
    return line_chart(
        series,
        title=name,
        description=f"From {first[1]:.3g} at step {first[0]:,.0f} to {last[1]:.3g} at step {last[0]:,.0f}.",
        y_format="{:.3g}".format,
        x_format="{:,.0f}".format,
        x_label="step",
        y_zero=min(values) >= 0,
    )
