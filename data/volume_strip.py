"""Brain masks of heads, for --strip of prepare.py: by deepbet, a network for T1 scans of adults (Fisch et al. 2024,
https://doi.org/10.1016/j.compbiomed.2024.108845), and checked, since it was trained on the healthy.

    made, doubt = write_mask(image, "AD_NC/masks/218391_mask.nii.gz")       # "deepbet", None

A volume without a skull is recognised and gets no second mask by deepbet, which would take bright cortex for skull. deepbet is
imported here alone: it brings its weights along, but also pandas, nibabel and others.
"""

import functools
import os
import warnings

import numpy as np

from data.dicom import require, sitk
from data.volume_masks import CONSTANT, ONE_PIECE, array_of, background_of, check_found, head_mask, largest_piece, like
from utils import UserError, atomic_path

BRAIN_ML = 900, 2100  # of deepbet's masks, which reach to the skull; a head scaled to MNI152, as in CAPS, has 1,900 to 2,000
MAX_HOLES = 0.01  # of a mask may lie inside it, but not belong to it
DEEPBET, STRIPPED = "deepbet", "stripped before"


@functools.cache
def network():
    """deepbet's networks, on the CPU; UserError where it is not installed."""
    try:
        import torch
        from deepbet import BrainExtraction
    except ImportError as error:
        raise UserError(f"--strip deepbet: pip install deepbet, or give --masks of another tool ({error})") from None
    torch.set_num_threads(1)  # as in `prepare_scan`
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how PyTorch will load such files one day
        return BrainExtraction(no_gpu=True)


def deepbet_mask(image):
    """Where deepbet sees the brain in a volume with axes LPS: a mask (uint8, 0 or 1), as it comes, with specks and holes."""
    upright = sitk.DICOMOrient(image, "RAS")  # the order of its training scans; it takes arrays [x, y, z]
    try:
        found = network().run_model(sitk.GetArrayFromImage(upright).astype(np.float32).transpose(2, 1, 0).copy())
    except (AssertionError, ValueError):
        raise UserError("deepbet finds no brain; is this a T1 scan of a head?") from None
    return sitk.DICOMOrient(like((found > 0.5).astype(np.uint8).transpose(2, 1, 0).copy(), upright), "LPS")


def stripped_before(image):
    """The brain in a volume without a skull, as a mask; None for a head.

    Without a skull, what is outside has one value, and what is left is no larger than a brain.
    """
    mask = head_mask(image, with_neck=True)
    inside = array_of(mask) > 0
    constant = (array_of(image)[~inside] == background_of(image)[0]).mean() > CONSTANT
    return mask if constant and inside.sum() * np.prod(image.GetSpacing()) / 1000 <= BRAIN_ML[1] else None


def write_mask(image, path, centred=True):
    """Write the mask of the brain in a T1 volume to `path`; returns (DEEPBET or STRIPPED, why it is doubtful or None).

    centred: as in `check_found`. UserError if there is no brain at all.
    """
    image = sitk.DICOMOrient(image, "LPS")
    mask, made, doubt = stripped_before(image), STRIPPED, None
    if mask is None:
        found, made = deepbet_mask(image), DEEPBET
        piece, share = largest_piece(found)
        require(share, "deepbet finds no brain; is this a T1 scan of a head?")
        mask = sitk.BinaryFillhole(piece)
        doubt = doubt_of(mask, share, array_of(piece).sum() / array_of(mask).sum())
    with atomic_path(path) as temporary:
        sitk.WriteImage(mask, f"{temporary}.nii.gz", useCompression=True)  # SimpleITK goes by the ending
        os.replace(f"{temporary}.nii.gz", temporary)
    try:
        check_found(image, mask, path, centred)
    except UserError as error:
        doubt = doubt or str(error)
    return made, doubt


def doubt_of(mask, share, solid):
    """Why a mask with axes LPS may be wrong, or None. share: of what was found in its largest piece; solid: of the mask before it
    was filled. At the bottom a stem may leave the volume, and `check_found` looks."""
    inside = array_of(mask) > 0
    ml = inside.sum() * np.prod(mask.GetSpacing()) / 1000
    faces = {"top": inside[-1], "front": inside[:, 0], "back": inside[:, -1], "right": inside[..., 0], "left": inside[..., -1]}
    if not BRAIN_ML[0] <= ml <= BRAIN_ML[1]:
        return f"deepbet's mask has {ml:.0f} ml, not {BRAIN_ML[0]} to {BRAIN_ML[1]}"
    if share < ONE_PIECE:
        return f"deepbet's mask is in pieces, the largest {share:.0%} of it"
    if solid < 1 - MAX_HOLES:
        return f"deepbet's mask has holes, {1 - solid:.0%} of it"
    touched = [name for name, face in faces.items() if face.any()]
    return f"deepbet's mask touches the edge of the volume ({', '.join(touched)})" if touched else None
