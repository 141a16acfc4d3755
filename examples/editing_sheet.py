"""A sheet of edits for any image run: in-painting, out-painting and class edits, and how well kept pixels survive.

    python examples/editing_sheet.py runs/fashion --out sheet.png

Takes a minute on two cores. Each row shows one test image: the image, the part that in-painting keeps, three
in-paintings of the middle, the part that out-painting keeps, three out-paintings around the middle, and three edits of
the middle to other classes.

Prints the PSNR of the kept pixels in plain reconstructions of the images and in the edits. Nothing is pasted back. The
edits should keep these pixels at least as well, because the kept part need not be quantized.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import nextscale
from nextscale.api import Model
from nextscale.sampling.editing import box_mask
from nextscale.toolkit.metrics import psnr_where

VERSIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--replay", action="store_true", help="keep only tokens, as published VAR does")
    options = parser.parse_args()

    model = nextscale.load(options.run)
    data = model.modality.open_data(model.config.data)
    source = data.test or data.validation
    batch = source.batch(np.arange(options.images), None)
    samples, labels = batch.samples, batch.conditions.get("label")
    height, width = samples.shape[2:]
    box = box_mask((height // 4, width // 4, height - height // 4, width - width // 4), (height, width))

    columns, rows = [samples, samples.where(~box, torch.zeros(()))], {}
    for name, keep in (("in-painting", ~box), ("out-painting", box), ("class edit", ~box)):
        if name == "class edit" and labels is None:
            continue
        if name == "out-painting":
            columns.append(samples.where(keep, torch.zeros(())))
        versions = []
        for i in range(VERSIONS):
            named = {} if labels is None else {"label": labels, "guidance": options.guidance}
            if name == "class edit":
                named["label"] = (labels + 1 + i) % model.conditions[0].size
            edited = model.edit(samples, keep, seed=options.seed + i, replay=options.replay, **named)
            versions.append(edited.samples.cpu())
        columns += versions
        rows[name] = kept_psnr(model, samples, versions, keep)
    flat = torch.stack(columns, 1).flatten(0, 1)
    print(model.modality.write_grid(flat, options.out, {}, len(columns)))
    for name, (plain, edited) in rows.items():
        print(f"{name:12}  kept pixels: reconstruction {plain:.2f} dB, edits {edited:.2f} dB ({edited - plain:+.2f})")


@torch.inference_mode()
def kept_psnr(model: Model, samples: Tensor, versions: list[Tensor], keep: Tensor) -> tuple[float, float]:
    """PSNR in dB of plain reconstructions and of edits, over the kept pixels of all images."""
    pyramid = model.tokenizer.encode(samples.to(model.tokenizer.device))
    plain = model.tokenizer.decode_tokens(pyramid).cpu().clamp(-1, 1)
    edited = torch.cat(versions).clamp(-1, 1)
    everywhere = keep.expand(len(samples), *keep.shape)
    many = keep.expand(len(edited), *keep.shape)
    return psnr_where(plain, samples, everywhere), psnr_where(edited, torch.cat([samples] * len(versions)), many)


if __name__ == "__main__":
    main()
