"""Pictures of results, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

STALLS = ("drain_stalls", "waits", "setup", "idle")


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def cycles_chart(layers: list[dict], groups: int, title: str, path: Path) -> None:
    """One bar a layer: cycles, split into steps and what was lost, with the bound as a mark."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(max(6, 0.6 * len(layers) + 3), 4.5), layout="constrained")
    x = np.arange(len(layers))
    bottom = np.zeros(len(layers))
    for name in ("steps", *STALLS):
        height = np.array([layer[name] / groups for layer in layers])
        axes.bar(x, height, bottom=bottom, label=name.replace("_", " "))
        bottom += height
    bounds = [layer["bound_cycles"] for layer in layers]
    axes.scatter(x, bounds, marker="_", s=400, color="black", zorder=3, label="bound")
    axes.set_xticks(x, [layer["name"] for layer in layers], rotation=60, ha="right", fontsize=8)
    axes.set_ylabel("clock cycles")
    axes.set_title(title)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def gallery(images: np.ndarray, captions: list[str], right: list[bool], title: str, path: Path) -> None:
    """Pictures (N, H, W) or (N, H, W, 3) with captions, green where right and red where wrong."""
    plt = _pyplot()
    columns = 8
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.85 * rows + 0.5), layout="constrained")
    for axis in np.ravel(axes):
        axis.axis("off")
    for axis, image, caption, good in zip(np.ravel(axes), images, captions, right, strict=False):
        axis.imshow(image, cmap="gray")
        axis.set_title(caption, fontsize=8, color="darkgreen" if good else "crimson")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curve_chart(figures: dict, path: Path) -> None:
    """Accuracy against cycles of one network at many densities; `figures` are those of `sentei curve`."""
    plt = _pyplot()
    points = figures["points"]
    cycles = [point["cycles"] for point in points]
    accuracies = [100 * point["accuracy"] for point in points]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(cycles, accuracies, marker="o", label="INT4")
    axes.axhline(100 * figures["float_accuracy"], color="gray", linestyle="--", linewidth=1, label="float network")
    for point, x, y in zip(points, cycles, accuracies, strict=True):
        text = f"{point['keep']} kept\n{y:.1f} %, {max(cycles) / x:.1f}x"
        axes.annotate(text, (x, y), textcoords="offset points", xytext=(6, -24), fontsize=8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"clock cycles a picture ({figures['geometry']} array, simulated RTL)")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"{figures['network']} on {figures['data']}: kernel elements kept against speed")
    axes.margins(x=0.2, y=0.2)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
