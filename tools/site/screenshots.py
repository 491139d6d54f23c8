"""Screenshots of a picture page with a headless Chromium, as docs/pictures.md shows them.

python tools/site/screenshots.py PAGE.html FOLDER [what the address asks for, as frame=5]
python tools/site/screenshots.py PAGE.html PICTURE.png [the same]: one wide picture
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --hide-scrollbars "
    "--virtual-time-budget=5000"
)
SHOTS = {  # name: width, height, and what the address asks for
    "wide_dark": (1400, 900, "theme=dark"),
    "wide_light": (1400, 900, "theme=light&view=bird's eye"),
    "small_dark": (800, 600, "theme=dark&view=from the left"),
    "small_light": (800, 600, "theme=light&boxes=class&points=range"),
}
COLOURS = 256  # of a picture's own, which makes the files small
SECONDS = 120


def browser() -> str:
    """The first browser that is here."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        sys.exit("no Chromium here: apt-get install chromium")
    return found


def shoot(page: Path, target: Path, width: int, height: int, wishes: str) -> None:
    """Write a picture of a page in a window of a size."""
    with tempfile.TemporaryDirectory() as profile:
        options = [f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={target}"]
        command = [browser(), *FLAGS.split(), *options, f"{page.resolve().as_uri()}#{wishes}"]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
    with Image.open(target) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(target, optimize=True)


def main(page: str, folder: str, wishes: str = "") -> None:
    """Write all pictures of a page, or one."""
    if folder.endswith(".png"):
        shoot(Path(page), Path(folder).resolve(), *SHOTS["wide_dark"][:2], wishes)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (width, height, own) in SHOTS.items():
        target = Path(folder) / f"{name}.png"
        shoot(Path(page), target.resolve(), width, height, f"{own}&{wishes}")
        print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
