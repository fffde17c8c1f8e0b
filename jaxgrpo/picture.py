"""What all pictures share: colours, plain axes, and files that appear whole or not at all."""

import io
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from jaxgrpo.storage import is_remote, naming, reached

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # Okabe and Ito's colour-blind safe palette


def plain(axes: Iterable) -> None:
    """No frame above and to the right, and a faint grid."""
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=GREY, alpha=0.25, lw=0.6)


def save(figure, path: Path) -> None:
    """Write a PNG and close the figure."""
    if is_remote(path):
        picture = io.BytesIO()
        figure.savefig(picture, dpi=150, format="png")
        plt.close(figure)
        with reached(path):
            path.write_bytes(picture.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.png")
    with naming(path):
        try:
            figure.savefig(temporary, dpi=150)
            temporary.replace(path)
        finally:
            plt.close(figure)
            temporary.unlink(missing_ok=True)  # of a disk that was full
