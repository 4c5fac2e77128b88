"""The README's drawings of the networks in modules.py: generator.png, style_block.png and discriminator.png.

    python diagrams.py --output_dir model_images

Widths come from modules.channels_at and parameter counts from the built networks, so that any size is drawn true.
Lengths are in pixels of a README 900 wide, y downwards (the PNGs have twice as many); (x, y) is the middle of a shape.
"""

import os
from collections import namedtuple

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path
from PIL import Image

from modules import RELU_GAIN, Discriminator, Generator, MappingNetwork, channels_at
from ops import SLOPE
from utils import LARGEST, RESOLUTIONS, ArgumentParser, atomic_path, make_folder, number, run_cli

BLUE, RED, PURPLE, AMBER = "#2a6f97", "#c8553d", "#7a5195", "#ef9b20"
GREY, DARK, PALE = "#8a8f94", "#2b2f33", "#cfd4d8"
WIDTH, POINT, DASHES = 900, 1.3, (0, (4, 2.5))  # README pixels across, points a README pixel
Sides = namedtuple("Sides", "left right top bottom")  # where arrows touch a box or a node


def block_table(resolution, channel_base, channel_max):
    """[(size, channels)] of the generator's blocks, 4 first; the discriminator goes through them backwards."""
    return [(2**i, channels_at(2**i, channel_base, channel_max)) for i in range(2, resolution.bit_length())]


def millions(network):
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"


def canvas(height, titles):  # titles: {x: text}
    figure = Figure(figsize=(WIDTH * POINT / 72, height * POINT / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0), xticks=(), yticks=(), frame_on=False)
    for x, text in titles.items():
        write(axes, x, 22, text, 14, weight="bold")
    return figure, axes


def write(axes, x, y, text, size=12.0, colour=DARK, align="center", weight="normal"):
    axes.text(x, y, text, size=size * POINT, weight=weight, color=colour, ha=align, va="center", linespacing=1.35)


def box(axes, x, y, width, height, text, colour, optional=False, size=12.0):
    fill = "white" if optional else [0.88 + 0.12 * c for c in to_rgb(colour)]
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            "round,pad=0,rounding_size=5",
            fc=fill,
            ec=colour,
            lw=1.2 * POINT,
            ls=DASHES if optional else "-",
        )
    )
    write(axes, x, y, text, size)
    return Sides((x - width / 2, y), (x + width / 2, y), (x, y - height / 2), (x, y + height / 2))


def node(axes, x, y, sign, colour):
    """A circle with a "+" or "x" in it, or for "." a dot."""
    radius = 3 if sign == "." else 10
    axes.add_patch(Circle((x, y), radius, fc=colour if sign == "." else "white", ec=colour, lw=1.3 * POINT))
    a, b = {".": (0, 0), "+": (5.5, 0), "x": (4, 4)}[sign]
    for dx, dy in ((a, b), (b, -a)):
        axes.plot([x - dx, x + dx], [y - dy, y + dy], color=colour, lw=1.5 * POINT)
    return Sides((x - radius, y), (x + radius, y), (x, y - radius), (x, y + radius))


def arrow(axes, *points, colour=DARK, optional=False, head=True):
    axes.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle="-|>" if head else "-",
            mutation_scale=9 * POINT,
            color=colour,
            lw=1.3 * POINT,
            ls=DASHES if optional else "-",
            zorder=1.5,
        )
    )


def column(axes, x, width, *rows, size=12.0, **line):
    """Boxes (y, height, text, colour[, optional]) and nodes (y, sign, colour), each with an arrow to the next."""
    stops = [node(axes, x, *row) if len(row) == 3 else box(axes, x, row[0], width, *row[1:], size=size) for row in rows]
    for above, below in zip(stops, stops[1:]):
        arrow(axes, above.bottom, below.top, **line)
    return stops


def draw_generator(resolution, channel_base, channel_max):
    table = block_table(resolution, channel_base, channel_max)
    mapping, network = MappingNetwork(), Generator(resolution, channel_base, channel_max)
    foot = 44 + 122 * len(table)
    titles = {130: f"Mapping: {millions(mapping)}", 590: f"Generator: {millions(network)}"}
    figure, axes = canvas(max(foot + 72, 906), titles)
    draw_mapping(axes, mapping, network.num_ws, foot - 57)
    for i, (size, channels) in enumerate(table):
        top, y = 44 + 122 * i, 135 + 122 * i  # y: where the features go on down, and aside to the image
        box(axes, 590, top + 55, 592, 110, "", PALE)
        write(axes, 674, top + 17, f"{size} × {size}", 14, align="left", weight="bold")
        write(axes, 674, top + 34, f"{channels} channels", align="left")
        if i == 0:
            first = box(axes, 450, top + 23, 216, 30, f"learned constant, {channels} × 4 × 4", BLUE)
        else:
            first = style_block(axes, top + 23, f"style block ↑ 2,  {table[i - 1][1]} → {channels}", 2 * i - 1)
            arrow(axes, (450, y - 122), first.top)
            node(axes, 450, y - 122, ".", DARK)
        last = style_block(axes, top + 65, f"style block,  {channels} → {channels}", 2 * i)
        style = box(axes, 726, top + 55, 22, 20, "A", PURPLE)
        image = box(axes, 726, y, 112, 32, f"to image, 1 × 1\n{channels} → 1", RED, size=11)
        write(axes, 686, top + 54, f"$w_{{{2 * i + 1}}}$", 13, PURPLE)
        arrow(axes, (700, top + 55), style.left, colour=PURPLE)
        arrow(axes, style.bottom, image.top, colour=PURPLE)
        arrow(axes, first.bottom, last.top)
        arrow(axes, last.bottom, (450, y), image.left)
        if i == 0:
            arrow(axes, image.right, (838, y), (838, y + 65))
        else:
            _, plus = column(axes, 838, 50, (y - 45, 24, "↑ 2", GREY), (y, "+", RED))
            arrow(axes, image.right, plus.left)
            arrow(axes, plus.bottom, (838, y + 65))
    box(axes, 796, foot + 49, 180, 30, f"image, 1 × {resolution} × {resolution}", RED)
    return figure


def style_block(axes, y, text, layer):
    """A style block of the trunk with its noise and its style, from w number `layer`."""
    style, block = box(axes, 317, y, 22, 20, "A", PURPLE), box(axes, 450, y, 216, 30, text, BLUE, size=12.5)
    write(axes, 278, y - 9, f"$w_{{{layer}}}$", 12, PURPLE)
    arrow(axes, (262, y), style.left, colour=PURPLE)
    arrow(axes, style.right, block.left, colour=PURPLE)
    arrow(axes, box(axes, 612, y, 52, 20, "noise", AMBER, size=11).left, block.right, colour=AMBER)
    return block


def draw_mapping(axes, mapping, num_ws, bottom):
    """The left column: z -> w, the line that takes w to the style blocks, down to `bottom`, and what the signs mean."""
    z, w, wide = mapping.z_dim, mapping.w_dim, MappingNetwork(num_classes=2).layers[0].weight.shape[1]
    layers = [f"linear {z} ({wide}) → {w}, leaky ReLU"] + [f"linear {w} → {w}, leaky ReLU"] * (len(mapping.layers) - 1)
    unit = "scale to unit\nmean square"
    _, scaled = column(axes, 70, 112, (59, 30, f"$z \\sim N(0, 1)$,  {z}", PURPLE), (164, 40, unit, GREY))
    *_, alike = column(
        axes,
        190,
        112,
        (59, 30, "class label", GREY, True),
        (108, 30, f"embedding, {z}", PURPLE, True),
        (164, 40, unit, GREY, True),
        optional=True,
    )
    arrow(axes, scaled.bottom, (70, 204))
    arrow(axes, alike.bottom, (190, 204), optional=True)
    *_, out = column(
        axes,
        130,
        232,
        (219, 30, f"with classes: concatenate,  {wide}", GREY, True),
        *[(261 + 35 * i, 24, text, PURPLE) for i, text in enumerate(layers)],
        (265 + 35 * len(layers), 30, f"$w$,  {w}", PURPLE),
        size=11.5,
    )
    arrow(axes, out.right, (262, out.right[1]), (262, 109), (262, bottom), head=False, colour=PURPLE)
    for i, (sign, colour, text) in enumerate(
        (
            ("A", PURPLE, "affine layer:\nstyle $s = A(w)$"),
            ("↑ 2", GREY, "insert zeros, filter\nwith [1, 3, 3, 1]"),
            ("noise", AMBER, "$N(0, 1)$ at every pixel,\ntimes a learned strength"),
            ("to image", RED, "modulated convolution,\nno demodulation; bias"),
            ("$w_i$", PURPLE, f"{num_ws} inputs: the same $w$, or\nseveral (style mixing)"),
        )
    ):
        box(axes, 45, 622 + 56 * i, 62, 24, sign, colour, size=11.5)
        write(axes, 86, 622 + 56 * i, text, 11.5, align="left")


def draw_style_block():
    figure, axes = canvas(678, {235: "As computed here: one kernel for the batch", 705: "As in the paper: one kernel per image"})
    box(axes, 235, 252, 442, 320, "", PALE)
    styling = (58, 30, "latent $w$", PURPLE), (120, 32, "$s = A(w)$", PURPLE)
    _, style = column(axes, 80, 104, *styling, colour=PURPLE)
    _, scale, _, conv, _, rescale, bias, noise, *_ = column(
        axes,
        333,
        222,
        (58, 30, "$x$   [N, $C_{in}$, H, W]", GREY),
        (120, "x", PURPLE),
        (169, 28, "if ↑ 2: insert zeros", GREY, True),
        (228, 46, "3 × 3 convolution with\n$w_{oik}$, shared by all images", BLUE),
        (287, 28, "if ↑ 2: filter [1, 3, 3, 1]", GREY, True),
        (352, "x", PURPLE),
        (448, "+", BLUE),
        (500, "+", AMBER),
        (556, 30, f"leaky ReLU, slope {SLOPE}", GREY),
        (620, 30, "[N, $C_{out}$, H, W],  if ↑ 2: 2H, 2W", GREY),
    )
    root = box(axes, 128, 352, 200, 60, r"$d_o = g/\sqrt{\sum_{ik}\,(s_i\,w_{oik})^2 + \epsilon}$", PURPLE, size=13.5)
    shift = box(axes, 128, 448, 200, 28, "learned bias $b_o$", BLUE)
    strength = box(axes, 128, 500, 200, 28, "learned strength × noise", AMBER)
    write(axes, 490, 252, "=", 34, weight="bold")
    box(axes, 705, 252, 362, 320, "", PALE)
    _, other = column(axes, 590, 104, *styling, colour=PURPLE)
    _, kernel = column(
        axes,
        638,
        200,
        (196, 40, r"$w_{oik}^{\prime} = s_i\,w_{oik}$", PURPLE),
        (286, 60, r"$w_{oik}^{\prime\prime} = g\,w_{oik}^{\prime}\,/\,\sqrt{\sum_{ik}\,w_{oik}^{\prime\,2} + \epsilon}$", PURPLE),
        size=13.5,
        colour=PURPLE,
    )
    _, _, each, *_ = column(
        axes,
        818,
        112,
        (58, 30, "$x$", GREY),
        (150, 28, "if ↑ 2: zeros", GREY, True),
        (286, 80, "3 × 3\nconvolution,\neach image with\n" r"its own $w_{oik}^{\prime\prime}$", BLUE),
        (372, 28, "if ↑ 2: filter", GREY, True),
        (456, 46, "bias, noise,\nleaky ReLU", GREY),
    )
    weight = box(axes, 700, 120, 76, 32, "$w_{oik}$", BLUE)
    for colour, *points in (
        (PURPLE, style.right, scale.left),
        (PURPLE, style.bottom, (80, 322)),
        (PURPLE, root.right, rescale.left),
        (BLUE, conv.left, (176, 228), (176, 322)),
        (BLUE, shift.right, bias.left),
        (AMBER, strength.right, noise.left),
        (PURPLE, other.bottom, (590, 176)),
        (BLUE, weight.bottom, (700, 176)),
        (PURPLE, kernel.right, each.left),
    ):
        arrow(axes, *points, colour=colour)
    write(axes, 505, 516, "Both give the same, as convolution is linear:", align="left", weight="bold")
    write(
        axes, 505, 552, r"$d_o\,\sum_{ik} w_{oik}\,(s_i\,x_{i,p+k}) = \sum_{ik}\,(d_o\,s_i\,w_{oik})\,x_{i,p+k}$", 15, align="left"
    )
    write(
        axes,
        505,
        616,
        "$o$, $i$: output and input channel; $k$: tap; $p$: pixel\n"
        "$w_{oik}$: learned weight, equalised (over the root of $9\\,C_{in}$)\n"
        f"$g = {RELU_GAIN:.2f}$: keeps the scale through the leaky ReLU\n"
        "if ↑ 2: the first layer of every block but 4 × 4's\n"
        "In the code $d_o > 0$ passes the leaky ReLU, to the next $s$",
        align="left",
    )
    return figure


def draw_discriminator(resolution, channel_base, channel_max):
    table = block_table(resolution, channel_base, channel_max)[::-1]
    (_, first), (_, last) = table[0], table[-1]
    tail = max(172 + 58 * (len(table) - 1), 450)  # the first box after the residual blocks
    network = Discriminator(resolution, channel_base, channel_max)
    figure, axes = canvas(tail + 349, {175: f"Discriminator: {millions(network)}", 643: "A residual block, opened"})
    rows = [
        (56, "image", RED, f"1 × {resolution} × {resolution}"),
        (114, f"from image, 1 × 1,  1 → {first}, leaky ReLU", RED, f"{first} × {resolution} × {resolution}"),
    ]
    for i, ((_, here), (half, below)) in enumerate(zip(table, table[1:])):
        rows.append((172 + 58 * i, f"residual block,  {here} → {below}", BLUE, f"{below} × {half} × {half}"))
    rows += [
        (tail, "append minibatch standard deviation", GREY, f"{last + 1} × 4 × 4"),
        (tail + 58, f"convolution 3 × 3,  {last + 1} → {last}, leaky ReLU", BLUE, f"{last} × 4 × 4"),
        (tail + 116, f"flatten, linear,  {16 * last} → {last}, leaky ReLU", BLUE, f"$h$,  {last}"),
    ]
    *_, before = column(axes, 175, 322, *((y, 34, text, colour) for y, text, colour, _ in rows), size=12.5)
    for y, _, _, shape in rows:
        write(axes, 186, y + 28, shape, 11, align="left")
    score, plus, _ = column(
        axes,
        175,
        150,
        (tail + 210, 34, f"linear,  {last} → 1", BLUE),
        (tail + 264, "+", DARK),
        (tail + 318, 34, "score", RED),
        size=12.5,
    )
    arrow(axes, before.bottom, score.top)
    node(axes, 175, tail + 166, ".", DARK)
    product = box(axes, 470, tail + 210, 150, 40, rf"$\langle e, h \rangle \,/\, \sqrt{{{last}}}$", PURPLE, True, 13.5)
    embedding = box(axes, 651, tail + 210, 140, 34, f"embedding $e$,  {last}", PURPLE, True)
    label = box(axes, 831, tail + 210, 110, 34, "class label", GREY, True)
    for points in (
        ((175, tail + 166), (470, tail + 166), product.top),
        (label.left, embedding.right),
        (embedding.left, product.right),
        (product.bottom, (470, tail + 264), plus.right),
    ):
        arrow(axes, *points, optional=True)
    write(axes, 500, tail + 264, "with classes: projection of the label", 11.5, align="left")
    write(axes, 360, tail, "standard deviation over four images, averaged over channels and pixels", 11.5, align="left")
    axes.add_patch(Polygon([(336, 157), (401, 43), (401, 411), (336, 187)], color=PALE, alpha=0.5, lw=0))
    box(axes, 643, 227, 486, 376, "", PALE)
    *_, plus, _ = column(
        axes,
        535,
        220,
        (65, 30, "[N, $C_{in}$, H, W]", GREY),
        (138, 46, "3 × 3 convolution,\n$C_{in} \\to C_{in}$, leaky ReLU", BLUE),
        (202, 30, "filter [1, 3, 3, 1]", GREY),
        (266, 46, "3 × 3 convolution, stride 2,\n$C_{in} \\to C_{out}$, leaky ReLU", BLUE),
        (328, "+", DARK),
        (392, 30, "[N, $C_{out}$, H / 2, W / 2]", GREY),
    )
    halved, skip = column(
        axes,
        765,
        200,
        (202, 46, "filter [1, 3, 3, 1],\nkeep every second pixel", GREY),
        (266, 46, "1 × 1 convolution,\n$C_{in} \\to C_{out}$, no bias", BLUE),
    )
    node(axes, 535, 97, ".", DARK)
    arrow(axes, (535, 97), (765, 97), halved.top)
    arrow(axes, skip.bottom, (765, 328), plus.right)
    write(axes, 545, 359, r"$\times\,\sqrt{1/2}$", align="left")
    return figure


def main(argv=None):
    parser = ArgumentParser(
        "Draw the networks of modules.py for the README.",
        "diagrams.py",
        "diagrams.py --resolution 64 --channel_base 1024 --channel_max 64 --output_dir thin",
    )
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS, default=256, help="pixels")
    parser.add_argument("--channel_base", type=number(int, 32, LARGEST["channel_base"]), default=8192, help="as train.py's")
    parser.add_argument("--channel_max", type=number(int, 1, LARGEST["channel_max"]), default=256, help="as train.py's")
    parser.add_argument("--output_dir", default="model_images", help="folder for the three pictures")
    args = parser.parse_args(argv)
    make_folder(args.output_dir, "--output_dir")
    size = args.resolution, args.channel_base, args.channel_max
    for name, figure in (
        ("generator", draw_generator(*size)),
        ("style_block", draw_style_block()),
        ("discriminator", draw_discriminator(*size)),
    ):
        with atomic_path(os.path.join(args.output_dir, f"{name}.png")) as path:
            figure.savefig(path, dpi=2 * 72 / POINT)
            Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)  # a palette: a third of the size


if __name__ == "__main__":
    run_cli(main)
