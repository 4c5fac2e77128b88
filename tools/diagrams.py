"""A picture of the networks in modules.py for docs/networks.md: mapping network, generator and critic, a row for each resolution.

    python -m tools.diagrams --output_dir model_images

Channels and numbers of parameters are those of the networks themselves, the full ones at 256x256 with eight mapping layers.
"""

import os

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from modules import Discriminator, Generator, MappingNetwork
from utils import ArgumentParser, atomic_path, make_folder, run_cli

BLUE, RED, PURPLE, DARK = "#2a6f97", "#c8553d", "#7a5195", "#2b2f33"
WIDTH, ROW = 1000, 72  # of the page and between rows, in pixels; coordinates are pixels, y downwards; the PNG has twice as many
MAPPING, STYLES, IMAGES, SUM, SIZES, CRITIC = 95, 335, 540, 640, 715, 865  # x of the columns


class Diagram:
    """A page with boxes, arrows and text."""

    def __init__(self, height):
        self.figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0), xticks=(), yticks=(), frame_on=False)

    def write(self, x, y, text, size=11.0, colour=DARK, **style):
        self.axes.text(x, y, text, size=size, color=colour, ha="center", va="center", linespacing=1.35, **style)

    def box(self, x, y, width, text, colour, height=44):
        """A box around (x, y)."""
        fill = [0.88 + 0.12 * channel for channel in to_rgb(colour)]
        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=5"
        self.axes.add_patch(FancyBboxPatch(corner, width, height, style, fc=fill, ec=colour, lw=1.2))
        self.write(x, y, text)

    def arrow(self, start, end, colour=DARK):
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=style)


def count(network):
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"


def draw(resolution=256, channel_base=8192, channel_max=256):
    """The picture, a Figure; the arguments are those of the networks."""
    mapping, generator = MappingNetwork(), Generator(resolution, channel_base, channel_max)
    critic = Discriminator(resolution, channel_base, channel_max)
    blocks = len(generator.blocks)
    page = Diagram(175 + ROW * blocks)
    for x, name, network in ((MAPPING, "Mapping", mapping), (STYLES, "Generator", generator), (CRITIC, "Critic", critic)):
        page.write(x, 34, f"{name}\n{count(network)}", 12, weight="bold")
    bottom = 100 + ROW * blocks  # y of the image
    draw_mapping(page, mapping, bottom - ROW)
    draw_generator(page, generator)
    draw_critic(page, critic, bottom)
    page.box(SUM, bottom, 150, f"image, {resolution} × {resolution}", RED)
    page.arrow((SUM + 75, bottom), (CRITIC - 105, bottom))
    text = (
        "w enters the image layers, too; style blocks add noise. A class joins z by its embedding, and the score by a projection."
    )
    page.write(WIDTH / 2, bottom + 50, text)
    return page.figure


def draw_mapping(page, mapping, bottom):
    """From z to w, and the line that takes w to the style blocks down to `bottom`."""
    texts = f"z ~ N(0, 1), {mapping.z_dim}", f"{len(mapping.layers)} × linear,\nleaky ReLU", f"w, {mapping.w_dim}"
    for row, text in enumerate(texts):
        page.box(MAPPING, 100 + ROW * row, 140, text, PURPLE)
        if row:
            page.arrow((MAPPING, 122 + ROW * (row - 1)), (MAPPING, 78 + ROW * row))
    page.axes.plot([MAPPING + 70, 185, 185, 185], [100 + 2 * ROW, 100 + 2 * ROW, 100, bottom], color=PURPLE, lw=1.3)


def draw_generator(page, generator):
    """Rows of style blocks, whose images are added up from row to row."""
    for row, block in enumerate(generator.blocks):
        y, first = 100 + ROW * row, block.styles[0].conv.weight
        channels = f"{first.shape[1]} → {first.shape[0]}"
        text = f"2 style blocks, the first ↑ 2\n{channels}" if row else f"constant, style block\n{channels}"
        page.box(STYLES, y, 210, text, BLUE)
        page.arrow((185, y), (STYLES - 105, y), PURPLE)
        page.write(207, y - 9, "w", 11, PURPLE, style="italic")
        page.box(IMAGES, y, 100, f"to image\n{block.to_image.weight.shape[1]} → 1", RED)
        page.arrow((STYLES + 105, y), (IMAGES - 50, y))
        page.axes.plot([IMAGES + 50, SUM], [y, y], color=DARK, lw=1.3)
        page.arrow((SUM, y), (SUM, y + ROW - (10 if row < len(generator.blocks) - 1 else 22)))
        page.write(SIZES, y, f"{4 << row} × {4 << row}", 12, weight="bold")
        if row:
            page.arrow((STYLES, y - ROW + 22), (STYLES, y - 22))
            page.write(SUM + 16, y - ROW / 2, "↑ 2", 10)
            page.write(SUM, y, "+", 15, RED, bbox={"boxstyle": "circle,pad=0.1", "fc": "white", "ec": RED})


def draw_critic(page, critic, bottom):
    """From the image at the bottom up to the score."""
    last = critic.linear.weight.shape
    page.box(CRITIC, bottom, 210, f"from image, 1 → {critic.from_image.weight.shape[0]}", RED)
    texts = [f"residual block ↓ 2\n{block.conv2.weight.shape[1]} → {block.conv2.weight.shape[0]}" for block in critic.blocks]
    tail = f"minibatch standard deviation,\nconvolution, linear {last[1]} → {last[0]} → 1"
    for row, text in enumerate([*texts, tail], 1):
        page.box(CRITIC, bottom - ROW * row, 210, text, BLUE)
        page.arrow((CRITIC, bottom - ROW * (row - 1) - 22), (CRITIC, bottom - ROW * row + 22))
    page.arrow((CRITIC, 78), (CRITIC, 58))
    page.write(CRITIC + 28, 66, "score")


def main(argv=None):
    parser = ArgumentParser("Draw the networks of modules.py for docs/networks.md.", "-m tools.diagrams")
    parser.prog = "-m tools.diagrams"
    parser.add_argument("--output_dir", default="model_images", help="folder for networks.png")
    args = parser.parse_args(argv)
    make_folder(args.output_dir, "--output_dir")
    with atomic_path(os.path.join(args.output_dir, "networks.png")) as path:
        draw().savefig(path, dpi=144)
        Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)  # a palette: a third of the size


if __name__ == "__main__":
    run_cli(main)
