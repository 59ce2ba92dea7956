"""Where the built site lies, and where pictures of its pages are kept for people to look at."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
SCREENS = ROOT / "_build" / "screens"
