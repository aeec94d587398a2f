"""The picture in the documentation: loss, and how evenly the experts are used."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def plot(log: Path, routing: Path, out: Path) -> None:
    """Draw demo-training.csv and routing.json."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(csv.DictReader(log.open()))
    shares = json.loads(routing.read_text())["plain"]["shares"]
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    tested = [row for row in rows if row["held_out_loss"]]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    left.plot(tokens, [float(row["loss"]) for row in rows], label="training")
    held_out = [float(row["held_out_loss"]) for row in tested]
    left.plot([int(row["tokens"]) / 1e6 for row in tested], held_out, "o-", label="held out")
    left.set(title="Loss", xlabel="million tokens", ylabel="nats per token")
    left.legend()
    for key, label in (("max_share", "most used expert"), ("min_share", "least used expert")):
        middle.plot(tokens, [100 * float(row[key]) for row in rows], label=label)
    middle.axhline(100 / len(shares[0]), color="gray", linewidth=0.8)
    middle.set(
        title="Extremes over all layers", xlabel="million tokens", ylabel="% of a layer's choices", ylim=0
    )
    middle.legend()
    image = right.imshow([[100 * s for s in layer] for layer in shares], vmin=0, vmax=25, aspect="auto")
    right.set(title="Choices on held-out text (%)", xlabel="expert", ylabel="layer")
    figure.colorbar(image)
    figure.savefig(out, dpi=110)
