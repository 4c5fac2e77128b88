"""Mutation test of the mathematics: how many small changes of a source file make its tests fail?

    python tests/mutants.py                      all files: hours on two cores
    python tests/mutants.py training/loss.py     one file: minutes
    python tests/mutants.py --sample             every fifth mutant

mutmut makes the mutants, and keeps what it found in .mutants/ until a function changes. At least 90% of a file's mutants must be
killed, and each that survives explained in survivors.txt; exit status 1 if a file falls short.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SURVIVORS = os.path.join(ROOT, "tests", "survivors.txt")
WORK = os.path.join(ROOT, ".mutants")  # a copy of the repository for each file
GOAL = 0.9


class Target(NamedTuple):
    tests: str  # files of tests that have to notice a change
    functions: str = ""  # only these; all of the file if empty


TARGETS = {
    "ops.py": Target("tests/test_ops.py"),
    "modules.py": Target("tests/test_modules.py"),
    "dataset.py": Target("tests/test_dataset.py", "to_float to_uint8 steps_per_epoch schedule shard batches"),
    "data/decode.py": Target(
        "tests/data/test_decode.py", "to_grey pad_and_resize light_of filling range_of choose_levels usual_white"
    ),
    "training/loss.py": Target("tests/training/test_loss.py"),
    "training/step.py": Target("tests/training/test_step.py"),
    "training/augment.py": Target("tests/training/test_ada.py tests/training/test_augment.py"),
    "analysis/distances.py": Target(
        "tests/analysis/test_distances.py",
        "standardise polynomial_mmd kid prdc in_balls filter_separable smooth laplacian_pyramid draw_patches sliced_wasserstein "
        "_sort_rows radial_power spectrum_db memorisation fit_neighbours nearest_images _small_pixels",
    ),
    "analysis/bootstrap.py": Target("tests/analysis/test_bootstrap.py"),
    "analysis/style_space.py": Target(
        "tests/analysis/test_style_space.py", "style_separation same_class_fractions probe_scores verdict split_like"
    ),
    "analysis/areas.py": Target(
        "tests/analysis/test_areas.py",
        "measure_areas area_by_level reduce_to_side remove_shading equalise_brightness ellipse true_means",
    ),
}
# Lines that are not mathematics: messages and progress bars.
IGNORED = r"""
    ^\s*raise\b
    ^\s*f?".*"[,)]*$
    \bprint\(
    \btqdm\(
    \blabel=
"""


def main():
    parser = argparse.ArgumentParser(description="Run a mutation test of the mathematics.")
    parser.add_argument("files", nargs="*", choices=[[], *TARGETS], help="source files (default: all)")
    parser.add_argument("--sample", action="store_true", help="run only every fifth mutant")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    explanations, passed = read_explanations(), True
    for path in args.files or TARGETS:
        mutants = run_mutmut(path, args.processes, args.sample)
        survivors = [survivor for name, status in mutants.items() if status != "killed" for survivor in [describe(path, name)]]
        unexplained = [line for line in survivors if not any(fnmatch.fnmatchcase(line, pattern) for pattern in explanations)]
        idle = [pattern for pattern in explanations if pattern.startswith(path) and not fnmatch.filter(survivors, pattern)]
        killed = len(mutants) - len(survivors)
        print(f"{path}: {killed} of {len(mutants)} killed, {killed / len(mutants):.1%}; {len(unexplained)} survivors unexplained")
        print("".join(f"    {line}\n" for line in unexplained), end="", flush=True)
        if not args.sample:
            print("".join(f"    explains no survivor any more: {pattern}\n" for pattern in idle), end="", flush=True)
        passed &= killed >= GOAL * len(mutants) and not unexplained
    return 0 if passed else 1


def run_mutmut(path, processes, sample):
    """{name of a mutant: "killed", or how it survived} of a source file."""
    target, folder = TARGETS[path], work_folder(path)
    copy_repository(folder)
    with open(os.path.join(folder, "setup.cfg"), "w") as file:
        file.write(configuration(path, target))
    module = path.removesuffix(".py").replace("/", ".")
    functions = [f"{module}.x_{name}__mutmut_*" for name in target.functions.split()] or [f"{module}.*"]
    patterns = [function + digit for function in functions for digit in (("0", "5") if sample else ("",))]
    stats = os.path.join(folder, "mutants", "mutmut-stats.json")  # which tests reach a function: unknown of new functions
    if os.path.exists(stats):
        os.unlink(stats)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [mutmut(), "run", "--max-children", str(processes), *patterns]
    with open(os.path.join(folder, "mutmut.log"), "w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    with open(os.path.join(folder, "mutants", path + ".meta")) as file:
        codes = json.load(file)["exit_code_by_key"]
    chosen = {name: code for name, code in codes.items() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}
    if done.returncode or None in chosen.values():
        sys.exit(f"error: mutmut did not finish: see {log.name}")
    return {name: "survived" if code in (0, 5, 33) else "killed" for name, code in chosen.items()}  # 5, 33: no test reaches it


def mutmut():
    return os.path.join(os.path.dirname(sys.executable), "mutmut")


def work_folder(path):
    return os.path.join(WORK, path.removesuffix(".py").replace("/", "-"))


def copy_repository(folder):
    """Copy the sources, tests and settings of the repository, as far as git does not ignore them."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [name for name in listed.stdout.splitlines() if name.endswith((".py", ".j2", ".toml", ".md", ".txt"))]
    for name in files:
        destination = os.path.join(folder, name)
        if os.path.exists(os.path.join(ROOT, name)):
            os.makedirs(os.path.dirname(destination), exist_ok=True)
            shutil.copy2(os.path.join(ROOT, name), destination)


def configuration(path, target):
    lists = {
        "source_paths": ["modules.py", "ops.py", "dataset.py", "data", "training", "analysis"],
        "only_mutate": [path],
        "also_copy": ["train.py", "predict.py", "metrics.py", "bench.py", "phantom.py", "utils.py", "pyproject.toml"],
        "pytest_add_cli_args_test_selection": target.tests.split(),
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-m", "not slow"],
        "do_not_mutate_patterns": IGNORED.split("\n"),
    }
    lines = ["[mutmut]", "process_isolation=fork"]
    for key, values in lists.items():
        lines += [f"{key}=", *(f"    {value.strip()}" for value in values if value.strip())]
    return "\n".join(lines) + "\n"


def describe(path, name):
    """A mutant as a line: file, function, the changed words -> what they were changed into."""
    function = re.sub(r"^x_|^xǁ", "", name.rpartition(".")[2].rpartition("__mutmut_")[0]).replace("ǁ", ".")
    shown = subprocess.run([mutmut(), "show", name], cwd=work_folder(path), capture_output=True, text=True, check=True).stdout
    lines = shown.splitlines()
    before, after = (
        [word for line in lines if re.match(sign, line) for word in line[1:].split()] for sign in (r"-(?!--)", r"\+(?!\+\+)")
    )
    same = len(os.path.commonprefix([before, after]))
    before, after = before[same:], after[same:]
    same = len(os.path.commonprefix([before[::-1], after[::-1]]))
    before, after = (" ".join(words[: len(words) - same]) for words in (before, after))
    return f"{path} | {function} | {before} -> {after}"


def read_explanations():
    """Patterns of survivors that are explained: lines "file | function | change | reason", where * stands for anything."""
    with open(SURVIVORS) as file:
        lines = [line.rsplit(" | ", 1)[0] for line in file if line.strip() and not line.startswith("#")]
    return [re.sub(r"([\[?])", r"[\1]", line) for line in lines]


if __name__ == "__main__":
    sys.exit(main())
