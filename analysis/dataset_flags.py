"""The flags of dataset.py: in a file of their own, which needs no PyTorch, so that --help is quick."""

from utils import CLASSES, RESOLUTIONS, ArgumentParser, Group, number


def parse_args(argv=None):
    parser = ArgumentParser(
        "Report on a data set: counts, sizes, damaged files, people, what train and test share, samples.",
        "dataset.py --dataset_dir AD_NC",
        "dataset.py --dataset_dir AD_NC --subjects ADNI.csv",
    )
    data = Group(parser, "data set")
    data.add("--dataset_dir", required=True, help="AD_NC, or AD_NC/train with AD and NC in it")
    data.add("--classes", choices=("all", *CLASSES), default="all", help="which classes to look at")
    data.add("--subjects", metavar="CSV", help="who was scanned: LONI's table, or one with the columns image and subject")
    data.add("--num_workers", type=number(int, 0), help="decoding threads (default: one per core, up to 16)")

    report = Group(parser, "report")
    report.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="side of the sample images")
    report.add("--output_dir", default="dataset_report", help="folder for samples.png")
    return parser.parse_args(argv)
