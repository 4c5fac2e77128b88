"""Architecture diagrams of the networks in modules.py, the full ones at 256x256: generator.png and discriminator.png.

    python -m tools.diagrams --output_dir model_images

Sizes come from modules.channels_at, and numbers of parameters from the networks themselves. Coordinates are pixels of a page 900
wide, y downwards, and mark the centre of a shape; the PNGs have twice as many.
"""

import os
from typing import NamedTuple

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path
from PIL import Image

from modules import Discriminator, Generator, MappingNetwork, channels_at
from utils import ArgumentParser, atomic_path, make_folder, run_cli

BLUE, RED, PURPLE, AMBER = "#2a6f97", "#c8553d", "#7a5195", "#ef9b20"
GREY, DARK, PALE = "#8a8f94", "#2b2f33", "#cfd4d8"
WIDTH, POINT = 900, 1.3  # width of the page in pixels, points per pixel


class Sides(NamedTuple):
    """Where arrows meet a box or a node, (x, y) each."""

    left: tuple
    right: tuple
    top: tuple
    bottom: tuple


class Diagram:
    """A page with boxes, nodes, arrows and text. `optional` shapes are dashed: they exist only in some configurations."""

    def __init__(self, height, titles):  # titles: {x: text}
        self.figure = Figure(figsize=(WIDTH * POINT / 72, height * POINT / 72), facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0), xticks=(), yticks=(), frame_on=False)
        for x, text in titles.items():
            self.write(x, 22, text, 14, weight="bold")

    def write(self, x, y, text, size=12.0, colour=DARK, align="center", weight="normal"):
        self.axes.text(x, y, text, size=size * POINT, weight=weight, color=colour, ha=align, va="center", linespacing=1.35)

    def box(self, x, y, width, height, text, colour, optional=False, size=12.0):
        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=5"
        fill = "white" if optional else [0.88 + 0.12 * channel for channel in to_rgb(colour)]
        self.axes.add_patch(FancyBboxPatch(corner, width, height, style, fc=fill, ec=colour, lw=1.2 * POINT, ls=_line(optional)))
        self.write(x, y, text, size)
        return Sides((x - width / 2, y), (x + width / 2, y), (x, y - height / 2), (x, y + height / 2))

    def node(self, x, y, sign, colour):
        """A circle with a "+" in it, or a dot for "."."""
        radius, arm = (3, 0) if sign == "." else (10, 5.5)
        self.axes.add_patch(Circle((x, y), radius, fc=colour if sign == "." else "white", ec=colour, lw=1.3 * POINT))
        for dx, dy in ((arm, 0), (0, arm)):
            self.axes.plot([x - dx, x + dx], [y - dy, y + dy], color=colour, lw=1.5 * POINT)
        return Sides((x - radius, y), (x + radius, y), (x, y - radius), (x, y + radius))

    def arrow(self, *points, colour=DARK, optional=False, head=True):
        style = {"arrowstyle": "-|>" if head else "-", "mutation_scale": 9 * POINT, "lw": 1.3 * POINT, "ls": _line(optional)}
        self.axes.add_patch(FancyArrowPatch(path=Path(points), color=colour, zorder=1.5, **style))

    def column(self, x, width, rows, size=12.0, **line):
        """Boxes (y, height, text, colour[, optional]) and nodes (y, sign, colour) at x, with an arrow from each to the next."""
        shapes = [self.node(x, *row) if len(row) == 3 else self.box(x, row[0], width, *row[1:], size=size) for row in rows]
        for above, below in zip(shapes, shapes[1:]):
            self.arrow(above.bottom, below.top, **line)
        return shapes


def _line(optional):
    return (0, (4, 2.5)) if optional else "-"


def block_table(resolution, channel_base, channel_max):
    """[(size, channels)] of the generator's blocks from 4x4 up; the discriminator has them in reverse order."""
    return [(2**i, channels_at(2**i, channel_base, channel_max)) for i in range(2, resolution.bit_length())]


def millions(network):
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"


# ---------------------------------------------------------------------------------------------------------------------
# Mapping network and generator


def draw_generator(resolution=256, channel_base=8192, channel_max=256):
    blocks = block_table(resolution, channel_base, channel_max)
    mapping, network = MappingNetwork(), Generator(resolution, channel_base, channel_max)
    end = 44 + 122 * len(blocks)
    page = Diagram(max(end + 72, 906), {130: f"Mapping: {millions(mapping)}", 590: f"Generator: {millions(network)}"})
    _draw_mapping(page, mapping, end - 57)
    _draw_legend(page, network.num_ws)
    for i, (size, channels) in enumerate(blocks):
        top, y = 44 + 122 * i, 135 + 122 * i  # y: where the features leave for the next block and for the image
        page.box(590, top + 55, 592, 110, "", PALE)
        page.write(674, top + 17, f"{size} × {size}", 14, align="left", weight="bold")
        page.write(674, top + 34, f"{channels} channels", align="left")
        if i == 0:
            first = page.box(450, top + 23, 216, 30, f"learned constant, {channels} × 4 × 4", BLUE)
        else:
            first = _draw_style_block(page, top + 23, f"style block ↑ 2,  {blocks[i - 1][1]} → {channels}", 2 * i - 1)
            page.arrow((450, y - 122), first.top)
            page.node(450, y - 122, ".", DARK)
        last = _draw_style_block(page, top + 65, f"style block,  {channels} → {channels}", 2 * i)
        style = page.box(726, top + 55, 22, 20, "A", PURPLE)
        image = page.box(726, y, 112, 32, f"to image, 1 × 1\n{channels} → 1", RED, size=11)
        page.write(686, top + 54, f"$w_{{{2 * i + 1}}}$", 13, PURPLE)
        page.arrow((700, top + 55), style.left, colour=PURPLE)
        page.arrow(style.bottom, image.top, colour=PURPLE)
        page.arrow(first.bottom, last.top)
        page.arrow(last.bottom, (450, y), image.left)
        if i == 0:
            page.arrow(image.right, (838, y), (838, y + 65))
        else:
            _, plus = page.column(838, 50, [(y - 45, 24, "↑ 2", GREY), (y, "+", RED)])
            page.arrow(image.right, plus.left)
            page.arrow(plus.bottom, (838, y + 65))
    page.box(796, end + 49, 180, 30, f"image, 1 × {resolution} × {resolution}", RED)
    return page.figure


def _draw_style_block(page, y, text, layer):
    """A style block with its noise and its style, which comes from w number `layer`."""
    style, block = page.box(317, y, 22, 20, "A", PURPLE), page.box(450, y, 216, 30, text, BLUE, size=12.5)
    page.write(278, y - 9, f"$w_{{{layer}}}$", 12, PURPLE)
    page.arrow((262, y), style.left, colour=PURPLE)
    page.arrow(style.right, block.left, colour=PURPLE)
    page.arrow(page.box(612, y, 52, 20, "noise", AMBER, size=11).left, block.right, colour=AMBER)
    return block


def _draw_mapping(page, mapping, bottom):
    """The left column, from z to w, and the line that takes w to the style blocks down to `bottom`."""
    z, w, wide = mapping.z_dim, mapping.w_dim, MappingNetwork(num_classes=2).layers[0].weight.shape[1]
    layers = [f"linear {z} ({wide}) → {w}, leaky ReLU"] + [f"linear {w} → {w}, leaky ReLU"] * (len(mapping.layers) - 1)
    unit = "scale to unit\nmean square"
    latent = [(59, 30, f"$z \\sim N(0, 1)$,  {z}", PURPLE), (164, 40, unit, GREY)]
    label = [(59, 30, "class label", GREY, True), (108, 30, f"embedding, {z}", PURPLE, True), (164, 40, unit, GREY, True)]
    trunk = [(219, 30, f"with classes: concatenate,  {wide}", GREY, True)]
    trunk += [(261 + 35 * i, 24, text, PURPLE) for i, text in enumerate(layers)]
    trunk += [(265 + 35 * len(layers), 30, f"$w$,  {w}", PURPLE)]
    page.arrow(page.column(70, 112, latent)[-1].bottom, (70, 204))
    page.arrow(page.column(190, 112, label, optional=True)[-1].bottom, (190, 204), optional=True)
    right = page.column(130, 232, trunk, size=11.5)[-1].right
    page.arrow(right, (262, right[1]), (262, 109), (262, bottom), head=False, colour=PURPLE)


def _draw_legend(page, num_ws):
    rows = [
        ("A", PURPLE, "affine layer:\nstyle $s = A(w)$"),
        ("↑ 2", GREY, "insert zeros, filter\nwith [1, 3, 3, 1]"),
        ("noise", AMBER, "$N(0, 1)$ at every pixel,\ntimes a learned strength"),
        ("to image", RED, "modulated convolution,\nno demodulation; bias"),
        ("$w_i$", PURPLE, f"{num_ws} inputs: the same $w$, or\nseveral (style mixing)"),
    ]
    for i, (sign, colour, text) in enumerate(rows):
        page.box(45, 622 + 56 * i, 62, 24, sign, colour, size=11.5)
        page.write(86, 622 + 56 * i, text, 11.5, align="left")


# ---------------------------------------------------------------------------------------------------------------------
# Discriminator


def draw_discriminator(resolution=256, channel_base=8192, channel_max=256):
    blocks = block_table(resolution, channel_base, channel_max)[::-1]
    (_, first), (_, last) = blocks[0], blocks[-1]
    tail = max(172 + 58 * (len(blocks) - 1), 450)  # y of the first box after the residual blocks
    network = Discriminator(resolution, channel_base, channel_max)
    page = Diagram(tail + 349, {175: f"Discriminator: {millions(network)}", 643: "Inside a residual block"})
    rows = [
        (56, "image", RED, f"1 × {resolution} × {resolution}"),
        (114, f"from image, 1 × 1,  1 → {first}, leaky ReLU", RED, f"{first} × {resolution} × {resolution}"),
    ]
    for i, ((_, inputs), (size, outputs)) in enumerate(zip(blocks, blocks[1:])):
        rows.append((172 + 58 * i, f"residual block,  {inputs} → {outputs}", BLUE, f"{outputs} × {size} × {size}"))
    rows += [
        (tail, "append minibatch standard deviation", GREY, f"{last + 1} × 4 × 4"),
        (tail + 58, f"convolution 3 × 3,  {last + 1} → {last}, leaky ReLU", BLUE, f"{last} × 4 × 4"),
        (tail + 116, f"flatten, linear,  {16 * last} → {last}, leaky ReLU", BLUE, f"$h$,  {last}"),
    ]
    hidden = page.column(175, 322, [(y, 34, text, colour) for y, text, colour, _ in rows], size=12.5)[-1]
    for y, _, _, shape in rows:
        page.write(186, y + 28, shape, 11, align="left")
    page.write(360, tail, "standard deviation over four images, averaged over channels and pixels", 11.5, align="left")
    _draw_score(page, tail + 166, last, hidden)
    page.axes.add_patch(Polygon([(336, 157), (401, 43), (401, 411), (336, 187)], color=PALE, alpha=0.5, lw=0))
    _draw_residual_block(page)
    return page.figure


def _draw_score(page, y, channels, hidden):
    """From the last hidden layer to the score, with the projection of the label for a class-conditional network."""
    rows = [(y + 44, 34, f"linear,  {channels} → 1", BLUE), (y + 98, "+", DARK), (y + 152, 34, "score", RED)]
    score, plus, _ = page.column(175, 150, rows, size=12.5)
    page.arrow(hidden.bottom, score.top)
    page.node(175, y, ".", DARK)
    product = page.box(470, y + 44, 150, 40, rf"$\langle e, h \rangle \,/\, \sqrt{{{channels}}}$", PURPLE, True, 13.5)
    embedding = page.box(651, y + 44, 140, 34, f"embedding $e$,  {channels}", PURPLE, True)
    label = page.box(831, y + 44, 110, 34, "class label", GREY, True)
    page.arrow((175, y), (470, y), product.top, optional=True)
    page.arrow(label.left, embedding.right, optional=True)
    page.arrow(embedding.left, product.right, optional=True)
    page.arrow(product.bottom, (470, y + 98), plus.right, optional=True)
    page.write(500, y + 98, "with classes: projection of the label", 11.5, align="left")


def _draw_residual_block(page):
    page.box(643, 227, 486, 376, "", PALE)
    main = [
        (65, 30, "[N, $C_{in}$, H, W]", GREY),
        (138, 46, "3 × 3 convolution,\n$C_{in} \\to C_{in}$, leaky ReLU", BLUE),
        (202, 30, "filter [1, 3, 3, 1]", GREY),
        (266, 46, "3 × 3 convolution, stride 2,\n$C_{in} \\to C_{out}$, leaky ReLU", BLUE),
        (328, "+", DARK),
        (392, 30, "[N, $C_{out}$, H / 2, W / 2]", GREY),
    ]
    skip = [
        (202, 46, "filter [1, 3, 3, 1],\nkeep every second pixel", GREY),
        (266, 46, "1 × 1 convolution,\n$C_{in} \\to C_{out}$, no bias", BLUE),
    ]
    *_, plus, _ = page.column(535, 220, main)
    halved, projected = page.column(765, 200, skip)
    page.node(535, 97, ".", DARK)
    page.arrow((535, 97), (765, 97), halved.top)
    page.arrow(projected.bottom, (765, 328), plus.right)
    page.write(545, 359, r"$\times\,\sqrt{1/2}$", align="left")


# ---------------------------------------------------------------------------------------------------------------------
# The command


def main(argv=None):
    parser = ArgumentParser("Draw the networks of modules.py for docs/networks.md.", "-m tools.diagrams")
    parser.prog = "-m tools.diagrams"
    parser.add_argument("--output_dir", default="model_images", help="folder for the two images")
    args = parser.parse_args(argv)
    make_folder(args.output_dir, "--output_dir")
    for name, draw in (("generator", draw_generator), ("discriminator", draw_discriminator)):
        with atomic_path(os.path.join(args.output_dir, f"{name}.png")) as path:
            draw().savefig(path, dpi=2 * 72 / POINT)
            Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)  # a palette: a third of the size


if __name__ == "__main__":
    run_cli(main)
