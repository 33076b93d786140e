"""Does the quickstart's summary hold what the README promises? Usage: python check_quickstart.py SUMMARY"""

import json
import sys
from pathlib import Path

LEAST_ACCURACY = 0.80
MOST_WITHOUT_LOOKING = 0.40
MOST_SECONDS = 180


def problems(summary: dict) -> list[str]:
    shapes = summary["benchmarks"]["shapes"]
    controls = shapes["controls"]
    found = []
    if shapes["accuracy"] < LEAST_ACCURACY:
        found.append(f"accuracy {shapes['accuracy']:.1%} is under {LEAST_ACCURACY:.0%}")
    for name in ("shuffled", "no_image"):
        if controls[name] >= MOST_WITHOUT_LOOKING:
            found.append(f"the control {name} gets {controls[name]:.1%}, not under {MOST_WITHOUT_LOOKING:.0%}")
    if summary["wall_seconds"] > MOST_SECONDS:
        found.append(f"it took {summary['wall_seconds']:.0f} s, more than {MOST_SECONDS} s")
    return found


if __name__ == "__main__":
    found = problems(json.loads(Path(sys.argv[1]).read_text()))
    print("\n".join(f"quickstart: {problem}" for problem in found) or "quickstart: as promised")
    sys.exit(bool(found))
