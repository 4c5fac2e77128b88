"""The table and the figures of `analysis.quality.measure_quality`: what metrics.py and predict.py --evaluate show of it."""

import numpy as np
from matplotlib.figure import Figure

from analysis.distances import spectrum_db
from report import figures


def quality_table(quality):
    """The values of a `Quality` as lines of text, each beside its floor."""
    values = quality.values
    rows = [("KID x 1000", "kid_x1000"), ("  standard error", "kid_x1000_error")]
    rows += [(name, name) for name in ("precision", "recall", "density", "coverage")]
    rows.append(("SWD x 1000", "swd_x1000"))
    rows += [(f"  at {name.removeprefix('swd_x1000_')}", name) for name in values if name.startswith("swd_x1000_")]
    rows.append(("spectrum, dB", "spectrum_db"))
    lines = [(label, values[name], values.get(f"floor_{name}")) for label, name in rows]
    if "lost" in values:
        lines.append(("lost, share", values["lost"], 0.0))
    if "memorised" in values:
        lines.append(("memorised, share", values["memorised"], values["floor_memorised"]))
        lines += [(f"  95%, {end}", values[f"memorised_{name}"], None) for end, name in (("from", "low"), ("to", "high"))]
        lines.append(("nearest, median", values["nearest_fake"], values["floor_nearest_fake"]))
    head = f"{'':18}{'generated':>10}{quality.floor or 'no floor':>17}\n"
    texts = [(label, value, "-" if floor is None else f"{floor:.3f}") for label, value, floor in lines]
    return head + "\n".join(f"{label:18}{value:10.3f}{floor:>17}" for label, value, floor in texts)


def inception_table(found, counts, unit):
    """The dict of `analysis.inception.compare_features` as lines of text; counts: (real, generated) slices; unit: what the groups
    are, such as "people"."""
    sets = {"{} real and {} generated".format(*counts): found["all"]}
    if found["size"]:
        sets |= {f"{found['size']} and {found['size']}": found["half"], f"floor: halves that share no {unit}": found["floor"]}
    lines = [f"{'slices':36}{'FID':>10}{'error':>10}{'KID x 1000':>12}{'error':>10}"]
    for name, (fid, fid_error, kid, kid_error) in sets.items():
        lines.append(f"{name:36} {fid:9.2f} {fid_error:9.2f} {kid:11.2f} {kid_error:9.2f}")
    return "\n".join(lines)


def plot_quality(quality, path):
    """Draw metrics.png: the table, radial power spectra, SWD per band and, given a training set, distances to it."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (text_axes, spectrum_axes), (swd_axes, memory_axes) = figure.subplots(2, 2)
    _draw_table(text_axes, quality)
    _draw_spectra(spectrum_axes, quality)
    _draw_swd(swd_axes, quality)
    if quality.memory:
        _draw_memorisation(memory_axes, quality.memory)
    else:
        memory_axes.axis("off")
    for axes in (spectrum_axes, swd_axes, *([memory_axes] if quality.memory else [])):
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    figures.save_figure(figure, path)


def _draw_table(axes, quality):
    explanation = (
        "Right: the same of real slices, which a perfect generator would reach.\nLower is better, except for precision, recall, "
        "density and coverage\n(higher) and memorised and nearest (equal to the real set's). lost: how far the worst\n"
        "of precision, recall and coverage is on the way from its floor to nothing."
    )
    axes.axis("off")
    axes.text(0, 1, quality_table(quality), family="monospace", fontsize=9, va="top", transform=axes.transAxes)
    axes.text(0, -0.1, explanation, fontsize=8.5, va="bottom", transform=axes.transAxes)


def _draw_spectra(axes, quality):
    for name, power, colour in (("real", quality.real.power, figures.REAL), ("generated", quality.fake.power, figures.FAKE)):
        axes.plot(range(1, power.shape[1] + 1), spectrum_db(power), color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="cycles per image", ylabel="mean power, dB", title="Radial power spectrum")


def _draw_swd(axes, quality):
    values = quality.values
    sides = [name.removeprefix("swd_x1000_") for name in values if name.startswith("swd_x1000_")]
    x = np.arange(len(sides))
    series = [("swd_x1000", figures.FAKE, "generated and real"), ("floor_swd_x1000", figures.NEUTRAL, f"real, {quality.floor}")]
    series = [row for row in series if row[0] in values]
    for i, (name, colour, label) in enumerate(series):
        heights = [values[f"{name}_{side}"] for side in sides]
        axes.bar(x + 0.4 * (i - (len(series) - 1) / 2), heights, 0.4, color=colour, label=label)
    axes.margins(y=0.25)
    axes.set(xlabel="band of the Laplacian pyramid, pixels", ylabel="SWD x 1000", title="Sliced Wasserstein distance")
    axes.set(xticks=x, xticklabels=sides)


def _draw_memorisation(axes, memory):
    for name, values, colour in (("real, held out", memory.held_out, figures.REAL), ("generated", memory.fake, figures.FAKE)):
        shares = np.full(len(values), 1 / len(values))
        axes.hist(values.numpy(), np.linspace(0, 1, 41), weights=shares, color=colour, alpha=0.6, label=name)
    limit = memory.held_out.quantile(0.01).item()
    axes.axvline(limit, color="black", linewidth=1, linestyle=":", label="1st percentile of held out")
    axes.set(xlabel="distance to the nearest training image / mean of the 50 nearest", ylabel="share of images")
    axes.margins(y=0.3)  # room for the legend
    axes.set(title="Memorisation")


def save_nearest(fake, train, memory, path, count=12):
    """Write nearest.png: the generated images closest to the training set, beside the training images closest to them."""
    closest = memory.fake.argsort()[:count].numpy()
    pairs = zip(train[memory.nearest[closest].numpy()], memory.mirrored[closest])
    nearest = np.stack([image[:, ::-1] if mirrored else image for image, mirrored in pairs])
    figures.save_grids({"generated, nearest first": fake[closest], "nearest training slices": nearest}, path)
