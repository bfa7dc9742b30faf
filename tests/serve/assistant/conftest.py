"""Lets the tests of the page import what they share: `scripted`, `live_site`, `xss_vectors`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
