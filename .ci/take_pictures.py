"""The README's two pictures, out of the runs of `nanovlm train quickstart` and `nanovlm ablate pixel_shuffle`.

After `pip install -e ".[browser]"`:
    python .ci/take_pictures.py runs/quickstart/latest runs/ablations/pixel_shuffle
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OUT = Path(__file__).parents[1] / "experiments" / "results"
WIDTH, HEIGHT = 1160, 920  # of the report's first screen, down to the end of its first table


def take_pictures(quickstart: Path, ablation: Path) -> None:
    (gallery,) = (file for file in (quickstart / "evaluation" / "shapes").glob("*.png") if file.stem.isdigit())
    shutil.copyfile(gallery, OUT / "quickstart.png")
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto((ablation / "report.html").resolve().as_uri())
        page.screenshot(path=OUT / "ablation.png")
        browser.close()


if __name__ == "__main__":
    take_pictures(*map(Path, sys.argv[1:]))
