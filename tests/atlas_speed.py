"""How large is atlas.html, how long until its map is drawn, and how many frames a second does it draw?

    python tests/atlas_speed.py 2000 10000          # pages of so many points; needs selenium, Chromium and chromedriver

Slices of 64x64 are phantoms', style vectors have 256 numbers. Frames are those of a map that is moved, all its points redrawn; the
browser draws them without a GPU.
"""

import argparse
import os
import shutil
import sys
import tempfile

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from metrics import load
from phantom import write_phantoms
from report.atlas import Atlas, PointSet, Tab, View
from utils import run_cli

SUBJECTS = 10  # phantoms drawn; their slices are shown over and over, with noise
LOADED = """
const done = arguments[0];
function wait() { window.atlas ? requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)) : setTimeout(wait, 5); }
wait();
"""
MOVE = """
const done = arguments[0], times = []; let last;
function frame(now) {
  if (last) times.push(now - last);
  last = now;
  if (times.length === 120) return done(times);
  state.left = 40 * Math.sin(times.length / 9); redraw(); requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
"""
SCRIPT = """
const times = [];
for (let k = 0; k < 30; k++) { const start = performance.now(); redraw(); draw(); times.push(performance.now() - start); }
return times;
"""
HOVER = """
const times = [];
for (let k = 0; k < 30; k++) {
  const start = performance.now();
  nearest(map.clientWidth * (0.2 + 0.02 * k), map.clientHeight / 2); times.push(performance.now() - start);
}
return times;
"""


def write_page(path, count, rng, slices):
    """An atlas of two sets of `count` points in all."""
    atlas, sets = Atlas(slices.shape[1]), []
    for name, n in (("AD", count // 2), ("NC", count - count // 2)):
        noisy = np.clip(slices[rng.integers(0, len(slices), n)] + rng.normal(0, 4, (n, *slices.shape[1:])), 0, 255)
        facts = {"number": range(n), "area": rng.uniform(500, 2500, n), "distance": rng.random(n)}
        facts |= {"cluster": rng.integers(0, 5, n), "row": atlas.add_styles(rng.normal(size=(n, 256)))}
        about = {"class": name, "run": f"model/{name}", "trained": "last", "seed": 0, "w_dim": 256, "real": False}
        sets.append(PointSet(name, rng.normal(size=(n, 2)), atlas.add_slices(np.uint8(noisy)), facts, about))
    atlas.write(path, "Atlas", [Tab("AD and NC", "", [], [View(None, sets)])])
    return os.path.getsize(path)


def open_browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,1000", "--disable-gpu"):
        options.add_argument(argument)
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


def measure(browser, path):
    """(seconds from opening the page to its first drawn map, ms of the script for a frame and for a hover, frames a second)."""
    browser.get("file://" + path)
    drawn = browser.execute_async_script(LOADED)
    script, hover = (np.median(browser.execute_script(code)) for code in (SCRIPT, HOVER))
    return drawn / 1000, script, hover, 1000 / np.median(browser.execute_async_script(MOVE))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Measure the size and the speed of atlas.html in headless Chromium.")
    parser.add_argument("points", nargs="+", type=int)
    args = parser.parse_args(argv)
    rng = np.random.default_rng(0)
    browser = open_browser()
    print(f"Chromium {browser.capabilities['browserVersion']}")
    print("points      MB   first map, s   script a frame, ms   script a hover, ms   frames/s")
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(os.path.join(folder, "phantoms"), SUBJECTS, seed=0)
        slices, _ = load("--real", os.path.join(folder, "phantoms", "train"), "all", 64)
        for count in args.points:
            path = os.path.join(folder, f"{count}.html")
            size = write_page(path, count, rng, slices)
            drawn, script, hover, frames = measure(browser, path)
            print(f"{count:6d} {size / 1e6:7.2f} {drawn:14.2f} {script:20.1f} {hover:20.2f} {frames:10.0f}", flush=True)
    browser.quit()
    return 0


if __name__ == "__main__":
    run_cli(main)
