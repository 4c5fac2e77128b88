"""From an ADNI download to a data set: NIfTI or DICOM volumes become slices, split by person into train/ and test/.

    python prepare.py --volumes ADNI --subjects ADNI.csv --output_dir AD_NC

    AD_NC/train/AD/218391_81.jpeg    image 218391, slice 81: 256x240 pixels of 8 bits, or 16-bit PNG (--format png)
    AD_NC/scans.csv                  each scan done: whose it is, its group, sex, age and side; serves as --subjects
    AD_NC/skipped.csv                each scan or file that became no slices, and why
    AD_NC/provenance.json            flags, versions, commands, who is on which side, and SHA-256 of every input and slice
    AD_NC/steps/218391.png           what each step does, for --pictures scans

The steps are described in data/volume_steps.py, what is read and rejected in data/volumes.py; docs/volumes.md says the rest.
The same command resumes: a scan is done again if its volume, its mask or a slice is no longer the same; nobody changes sides.
Slices of earlier runs stay, unless the table gives their scan another group or person. Needs SimpleITK.
"""

import startup  # noqa: F401  # isort: skip

import shlex
import sys

from utils import ArgumentParser, Group, UserError, number, run_cli, usable_cores

SLICES = {"sagittal": (-9.0, 10.0), "axial": (-10.0, 28.0), "coronal": (-19.0, 19.0)}  # mm from the middle; 20 slices each


def parse_args(argv=None):
    parser = ArgumentParser(
        "Cut the volumes of an ADNI download (NIfTI, DICOM) into slices, split by person: the data set that train.py reads.\n"
        "The same command resumes. Exit status: 0 if every AD and CN scan in the table has its slices, 3 if some have none\n"
        "(skipped.csv says why), 2 if nothing could be done.",
        "prepare.py --volumes ADNI --subjects ADNI.csv --output_dir AD_NC",
        "prepare.py --volumes ADNI --subjects ADNI.csv --strip deepbet --template mni152",
        "prepare.py --volumes BIDS --subjects BIDS/participants.tsv --masks brain_masks --template brain.nii.gz",
        "prepare.py --volumes ADNI --subjects ADNI.csv --plane axial --slices -10 28 --n4 False --format png",
    )
    data = Group(parser, "data")
    text = "the download: .nii, .nii.gz or DICOM files at any depth; of BIDS and Clinica's CAPS sub-*_T1w.nii.gz"
    data.add("--volumes", metavar="DIR", required=True, help=text)
    text = "LONI's table, BIDS's participants.tsv, or one with the columns image, subject and group (AD, CN or NC)"
    data.add("--subjects", metavar="CSV", required=True, help=text)
    data.add("--output_dir", default="AD_NC", help="where train/ and test/ go: new, empty, or of an earlier run of the same flags")
    data.add("--test_share", type=number(float, 0, 0.9), default=0.3, help="share of the people who go to test/")
    data.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of the draw of these people")

    steps = Group(parser, "steps after the axes were swapped and flipped to those of a head, in this order")
    text = "brain masks, NIfTI files with the ID of the scan in their names, such as of HD-BET or SynthStrip: all else "
    steps.add("--masks", metavar="DIR", help=text + "becomes black; without them, the head stays")
    text = "make the masks, into OUTPUT_DIR/masks, by deepbet (pip install deepbet); scans without a skull stay as they are"
    steps.add("--strip", choices=("deepbet",), help=text)
    steps.add_bool("--keep_doubtful", False, "of --strip: keep scans whose mask is too large, too small, in pieces, ...")
    steps.add_bool("--n4", True, "correct the coil's bias field (N4): most of the time that a scan takes")
    text = "put each scan onto this NIfTI volume, of a brain with --masks or --strip, else of a head; mni152: nilearn's brain"
    steps.add("--template", metavar="FILE", help=text)
    text = "turn and shift; scale and shear, too, which changes areas; or leave it, as for CAPS, which lies in MNI152"
    steps.add("--align", choices=("rigid", "affine", "none"), default="rigid", help=text)
    steps.add("--resample", type=number(float, 0, 20), default=1.0, metavar="MM", help="to cubes of this side; 0: voxels stay")
    steps.add_bool("--scale", True, "make the --percentiles of brightness inside the brain (or head) black and white")
    levels = {"type": number(float, 0, 100), "nargs": 2, "metavar": ("LOW", "HIGH")}
    steps.add("--percentiles", default=[0.5, 99.5], help="for --scale", **levels)

    slices = Group(parser, "slices")
    text = "of the slices; sagittal ones are turned as in AD_NC, the top of the head on the right, the face below"
    slices.add("--plane", choices=tuple(SLICES), default="sagittal", help=text)
    text = "first and last: mm from the middle plane (to the right, upwards, backwards), or indices in the volume; default: "
    text += ", ".join(f"{low:g} {high:g} ({plane})" for plane, (low, high) in SLICES.items())
    slices.add("--slices", type=number(float, -1000, 10**5), nargs=2, metavar=("FROM", "TO"), help=text)
    slices.add("--slices_in", choices=("mm", "index"), default="mm", help="the unit of --slices")
    slices.add("--num_slices", type=number(int, 1, 1000), default=20, help="of each scan, at even distances")
    slices.add("--format", choices=("jpeg", "png"), default="jpeg", help="8-bit JPEG or 16-bit PNG")

    run = Group(parser, "run")
    run.add("--pictures", type=number(int, 0), default=4, metavar="N", help="show the steps of so many scans in OUTPUT_DIR/steps/")
    text = "processes; each takes 0.6 GB of memory for a scan of 256x256x166, with --strip 1.8 GB"
    run.add("--num_workers", type=number(int, 1), default=usable_cores(), help=text)
    return check_flags(parser.parse_args(argv))


def check_flags(args):
    """The flags, with the default of --slices; UserError where some do not go together."""
    if args.slices_in == "index" and not args.slices:
        raise UserError("--slices_in index: give --slices too, the first and the last index")
    if args.strip and args.masks:
        raise UserError("--strip makes masks, and --masks gives them: leave out one")
    if args.align != "rigid" and not args.template:
        raise UserError(f"--align {args.align}: give --template too, such as mni152")
    args.slices = args.slices or list(SLICES[args.plane])
    for flag in "slices", "percentiles":
        low, high = getattr(args, flag)
        if low > high or (low == high and (flag == "percentiles" or args.num_slices > 1)):
            raise UserError(f"--{flag} {low:g} {high:g}: the second has to be the greater")
    return args


def main(argv=None):
    flags = {name: tuple(value) if isinstance(value, list) else value for name, value in vars(parse_args(argv)).items()}
    from data.preparation import Request, prepare  # here: where SimpleITK is missing, that has to reach run_cli
    from data.volume_steps import Settings
    from report.volume_pictures import save

    settings = Settings(**{name: flags.pop(name) for name in Settings._fields})
    command = shlex.join(["prepare.py", *map(str, sys.argv[1:] if argv is None else argv)])
    return prepare(Request(**flags, settings=settings, command=command), save)


if __name__ == "__main__":
    run_cli(main)
