"""Run a command; on Linux without a display, run it under a virtual one: napari's canvas needs GL."""

import os
import shutil
import subprocess
import sys


def main(command: list[str]) -> int:
    """Run the command and return its exit status."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        if not shutil.which("xvfb-run"):
            sys.exit("No DISPLAY and no xvfb-run: .ci/run lists the Debian packages to install.")
        # Qt's offscreen platform, often chosen where there is no screen, has no GL.
        os.environ["QT_QPA_PLATFORM"] = "xcb"
        command = ["xvfb-run", "-a", "-s", "-screen 0 1280x1024x24 +extension GLX", *command]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
