"""Pictures: in the terminal and as PNG. The plotting libraries are an extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamoid.errors import MissingExtra

Curve = Sequence[tuple[float, float]]
"""Points (step, loss in nats)."""


def smooth(curve: Curve, n_points: int = 200) -> list[tuple[float, float]]:
    """Means over equal stretches, so that at most `n_points` remain."""
    stretch = max(-(-len(curve) // n_points), 1)
    groups = [curve[i : i + stretch] for i in range(0, len(curve), stretch)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def loss_curve_text(training: Curve, heldout: Curve, width: int = 78, height: int = 18) -> str:
    """The loss over the steps, drawn with characters. Raises MissingExtra without plotext."""
    try:
        import plotext
    except ImportError:
        raise MissingExtra("plotext", "plots") from None
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(width, height)
    for curve, label in ((smooth(training), "training"), (heldout, "held out")):
        plotext.plot([x for x, _ in curve], [y for _, y in curve], label=label)
    plotext.title("loss (nats per token)")
    plotext.xlabel("step")
    return str(plotext.uncolorize(plotext.build()))


def loss_curve_png(file: Path, training: Curve, heldout: Curve, title: str) -> None:
    """The loss over the steps as a PNG. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "plots") from None
    figure = Figure(figsize=(8, 4.5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    axes.plot(*zip(*training, strict=True), color="#9ecae1", linewidth=0.7, label="training, each step")
    axes.plot(*zip(*smooth(training), strict=True), color="#08519c", linewidth=1.4, label="training, mean")
    axes.plot(*zip(*heldout, strict=True), color="#d94801", marker="o", markersize=4, label="held out")
    axes.set(title=title, xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)
