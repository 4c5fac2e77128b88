"""A picture of what augmentation shows the critic: every operation of training/augment.py alone, and all together.

python -m report.augmentation --dataset_dir AD_NC/train
"""

import os

import torch
from matplotlib.figure import Figure

from dataset import Slices, spread, to_float, to_uint8
from report import figures
from training.augment import OPERATIONS, augment
from utils import CLASSES, RESOLUTIONS, ArgumentParser, class_name, make_folder, number, run_cli


def plot_operations(slices, rows, seed, path):
    """Draw `rows` slices: above, each operation alone, strongly; below, all together at p = 0.2, 0.5 and 0.8."""
    images = to_float(torch.from_numpy(spread(slices, rows)))
    rng = torch.Generator().manual_seed(seed)
    alone = {name: strongest(torch.stack([augment(images, 1.0, rng, [name]) for _ in range(8)]), images) for name in OPERATIONS}
    together = [(f"p = {p}", augment(images, p, rng)) for p in (0.2, 0.5, 0.8) for _ in range(3)]
    figure = Figure(figsize=(15, 0.7 + 3 * rows), layout="constrained")
    for axes, columns in zip(figure.subplots(2), (alone.items(), together)):
        labels, columns = zip(("real", images), *columns)
        table = figures.tile(to_uint8(torch.stack(columns, dim=1).flatten(0, 1)).numpy(), len(columns))
        axes.imshow(table, cmap="gray", vmin=0, vmax=255)
        axes.set_xticks((torch.arange(len(columns)) + 0.5) * table.shape[1] / len(columns), labels)
        axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
        axes.set_yticks([])
    figures.save_figure(figure, path)


def strongest(draws, images):
    """Of draws [D, N, 1, R, R], the one that changed each image [N, 1, R, R] most, clipped as it is shown: [N, 1, R, R]."""
    change = (draws.clamp(-1, 1) - images).abs().mean((2, 3, 4))  # [D, N]
    return draws[change.argmax(0), torch.arange(len(images))]


def main(argv=None):
    parser = ArgumentParser(
        "Draw what augmentation shows the critic: each operation alone, and all together.",
        "-m report.augmentation --dataset_dir AD_NC/train --rows 4",
    )
    parser.prog = "-m report.augmentation"
    parser.add_argument("--dataset_dir", required=True, help="folder that holds AD/ and NC/, such as AD_NC/train")
    parser.add_argument("--classes", type=class_name, choices=("all", *CLASSES), default="all", help="slices to draw")
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS, default=128, help="pixels a side")
    parser.add_argument("--rows", type=number(int, 1, 100), default=4, help="slices")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of the random strengths")
    parser.add_argument("--output_dir", default="predictions", help="where augment.png goes")
    args = parser.parse_args(argv)
    slices = Slices(args.dataset_dir, args.classes, args.resolution)
    make_folder(args.output_dir, "--output_dir")
    path = os.path.join(args.output_dir, "augment.png")
    plot_operations(slices, args.rows, args.seed, path)
    print(path)
    return 0


if __name__ == "__main__":
    run_cli(main)
