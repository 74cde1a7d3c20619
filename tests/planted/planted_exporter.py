"""An exporter that never ends, run as a module."""

import os
import time
from pathlib import Path

if __name__ == "__main__":
    Path(os.environ["PLANTED_MARK"] + ".harm").touch()
    time.sleep(3600)
