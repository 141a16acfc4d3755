"""Fine-tunes the digits model from ten classes to five, compared with training from scratch on the same five.

    python examples/finetune_digits.py [RUN]

RUN is a run of the preset ``digits`` (default: runs/digits). If it is missing, it is trained first, which takes 4
minutes on two cores. The digits 5 to 9 become five classes of their own. A transformer is trained on them from scratch
in the preset's 1,000 steps, and the ten-class transformer is fine-tuned in a third of them. Both use RUN's tokenizer,
which stays unchanged. To fine-tune by hand:

    nextscale train --init-from runs/digits data=FIVE.npz training.transformer.steps=333

Prints, for both and for training from scratch in a third of the steps: validation loss (nats per token), the share of
correct tokens, and the share of 2,000 samples that an independent classifier puts into the requested class, at
guidance 0 and 2.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from nextscale import plugins
from nextscale.config.run import load_config, load_run_config
from nextscale.evaluation import evaluate
from nextscale.training.run import train

CLASSES = range(5, 10)


def write_five(run: Path, file: Path) -> None:
    """Write the run's own digits, in their splits: only those of ``CLASSES``, renumbered from 0."""
    data = plugins.modality("image").open_data(load_run_config(run).data)
    arrays = {}
    for name, source in (("train", data.train), ("val", data.validation), ("test", data.test)):
        assert source is not None
        batch = source.batch(np.arange(len(source)), None)
        labels = batch.conditions["label"].numpy()
        kept = np.isin(labels, CLASSES)
        pixels = ((batch.samples.numpy() + 1) * 127.5).round().astype(np.uint8)
        arrays |= {f"x_{name}": pixels[kept, 0], f"y_{name}": labels[kept] - CLASSES.start}
    np.savez(file, **arrays)


def main(run: Path, folder: Path) -> None:
    if not run.exists():
        train(load_config("image", "digits"), run)
    write_five(run, folder / "five.npz")
    # A run without a transformer passes on only its tokenizer.
    shutil.copytree(run / "tokenizer", folder / "base" / "tokenizer")
    shutil.copy(run / "config.yaml", folder / "base")
    steps = load_run_config(run).training.transformer.steps
    rows = []
    for name, start, number in (
        ("scratch", folder / "base", steps),
        ("scratch", folder / "base", steps // 3),
        ("fine-tuned", run, steps // 3),
    ):
        settings = [f"data={folder / 'five.npz'}", f"training.transformer.steps={number}"]
        out = folder / f"{name}-{number}"
        train(load_config("image", overrides=settings, start=start), out, "transformer")
        found = evaluate(out, samples=2000, options={"cache": folder})
        recognised = [found["samples"][guidance]["classifier_accuracy"] for guidance in ("0", "2")]
        rows.append((name, number, found["validation"]["loss"], found["validation"]["accuracy"], *recognised))
    print(f"{'':12}{'steps':>7}{'loss':>9}{'tokens':>9}{'samples':>9}{'guided':>9}")
    for name, number, loss, *shares in rows:
        print(f"{name:12}{number:>7}{loss:>9.3f}" + "".join(f"{share:>9.1%}" for share in shares))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits"), Path(folder))
