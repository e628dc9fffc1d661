"""curve.png: loss and held-out score over the steps of a run."""

from pathlib import Path


def draw(result: dict, metric: str, path: Path) -> None:
    """Draw loss and held-out score over the steps, a column per stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = result["stages"]
    figure = Figure(figsize=(5 * len(stages), 5.5), layout="constrained")
    axes = figure.subplots(2, len(stages), squeeze=False, sharex="col")
    for column, (name, stage) in enumerate(stages.items()):
        for row, (key, label) in enumerate(
            [("loss", "training loss"), (f"eval_{metric}", f"{metric}, held out")]
        ):
            points = [(e["step"], e[key]) for e in stage["history"] if key in e]
            axis = axes[row][column]
            axis.plot(*zip(*points, strict=True), marker="o")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        dev = f": dev {metric} {stage['dev'][metric]:.4f}" if stage["dev"] else ""
        axes[0][column].set_title(name + dev)
        axes[1][column].set_xlabel("step")
    FigureCanvasAgg(figure)
    part = path.with_name("curve.part.png")
    figure.savefig(part, dpi=100)
    part.replace(path)
