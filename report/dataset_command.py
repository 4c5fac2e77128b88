"""The command dataset.py: its flags, and what they ask for. Its report is imported after them, so that --help is quick."""

import argparse

from utils import CLASSES, RESOLUTIONS, ArgumentParser, Group, UserError, class_name, number

MATCHED = "position", "age", "sex"  # --match


def matched(text):
    """An argparse type: some of MATCHED, separated by commas, as a tuple in the order of MATCHED."""
    names = [name.strip().lower() for name in text.split(",")]
    if wrong := [name for name in names if name not in MATCHED]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(MATCHED)} (several are separated by commas)")
    return tuple(name for name in MATCHED if name in names)


def parse_args(argv=None):
    parser = ArgumentParser(
        "Report on a data set: counts, sizes, damaged files, people, what train and test share, samples; or split it by person.",
        "dataset.py --dataset_dir AD_NC",
        "dataset.py --dataset_dir AD_NC --subjects ADNI.csv",
        "dataset.py --dataset_dir AD_NC --subjects ADNI.csv --split_by_subject AD_NC_new --test_share 0.3 --seed 0",
        "dataset.py --dataset_dir AD_NC --subjects ADNI.csv --split_by_subject AD_NC_new --match position,age,sex",
    )
    data = Group(parser, "data set")
    data.add("--dataset_dir", required=True, help="AD_NC, or AD_NC/train with AD and NC in it")
    data.add("--classes", type=class_name, choices=("all", *CLASSES), default="all", help="which classes to look at")
    data.add("--subjects", metavar="CSV", help="who was scanned: LONI's CSV, or another table (docs/data.md)")
    data.add("--num_workers", type=number(int, 0), help="decoding threads (default: one per core, up to 16)")

    report = Group(parser, "report")
    report.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="side of the sample images")
    report.add("--output_dir", default="dataset_report", help="folder for samples.png")

    split = Group(parser, "new split")
    text = "instead of the report: link the slices into a new OUT/train and OUT/test that share no person; needs --subjects"
    split.add("--split_by_subject", metavar="OUT", help=text)
    split.add("--test_share", type=number(float, 0, 0.9, open_low=True), default=0.3, help="share of the people who go to OUT/test")
    split.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the draw of these people")
    text = "leave out slices of OUT until as many AD as NC slices share a slice index, an age tercile, a sex; one or several"
    split.add("--match", type=matched, default=(), metavar=",".join(MATCHED), help=text)
    args = parser.parse_args(argv)
    if args.match and not args.split_by_subject:
        raise UserError("--match belongs to --split_by_subject OUT")
    if args.match and args.classes != "all":
        raise UserError(f"--match compares AD with NC slices: leave out --classes {args.classes}")
    return args


def main(argv=None):
    args = parse_args(argv)
    data = args.dataset_dir, args.classes
    if args.split_by_subject:
        from report.split_report import split_by_subject

        split_by_subject(*data, args.split_by_subject, args.subjects, args.test_share, args.seed, args.match)
    else:
        from report.dataset_report import report

        report(*data, args.resolution, args.output_dir, args.num_workers, args.subjects)
    return 0
