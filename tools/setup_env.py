"""Makes a virtual environment, installs a requirements file into it, and reports what is missing where that fails.

python3 tools/setup_env.py .venv requirements.txt
"""

import shutil
import subprocess
import sys
from pathlib import Path

# system libraries that opencv-python and torch load -> the package of Debian and Ubuntu that contains them
APT = {
    "libGL.so.1": "libgl1",
    "libglib-2.0.so.0": "libglib2.0-0",
    "libgthread-2.0.so.0": "libglib2.0-0",
    "libSM.so.6": "libsm6",
    "libXext.so.6": "libxext6",
    "libgomp.so.1": "libgomp1",
}


def main() -> None:
    """Runs the command line: environment folder, requirements file."""
    venv, requirements = Path(sys.argv[1]), sys.argv[2]
    if sys.version_info < (3, 10):  # noqa: UP036 - an older python3 may run this file
        sys.exit(
            f"Python 3.10 or later is needed, this is {sys.version.split()[0]}; choose one: make PYTHON=python3.12 ..."
        )
    python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        if subprocess.run([sys.executable, "-m", "venv", str(venv)]).returncode:
            shutil.rmtree(venv, ignore_errors=True)  # without ensurepip, venv leaves an incomplete folder
            sys.exit("cannot make a virtual environment; on Debian or Ubuntu run: sudo apt-get install python3-venv")
    print(f"installing {requirements} into {venv} (torch is large: this takes some minutes)", flush=True)
    if subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", requirements]).returncode:
        sys.exit("pip cannot install the requirements; its message is above")
    check_libraries(python)


def check_libraries(python: Path) -> None:
    """Imports the packages that need system libraries; exits with the apt command for those that are missing."""
    probe = subprocess.run([str(python), "-c", "import cv2, torch, torchvision"], capture_output=True, text=True)
    if probe.returncode == 0:
        return
    missing = [package for library, package in APT.items() if library in probe.stderr]
    if missing:
        sys.exit(f"a system library is missing; run: sudo apt-get install {' '.join(dict.fromkeys(missing))}")
    sys.exit(f"the installed packages cannot be imported:\n{probe.stderr}")


if __name__ == "__main__":
    main()
