"""The same walls for an ordinary user: a process that is not root runs the attacks on what it reaches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Root shows interpreter and package where anybody can read them, in a mount namespace of its own, then steps down.
AS_NOBODY = """
import os, sys
from puna.sandbox.child import linux
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
linux.mount("none", "/srv", "tmpfs", 0, "mode=755")
shown = {"/srv/python": sys.base_prefix, "/srv/source": sys.argv[1], "/srv/packages": sys.argv[2]}
for place, source in shown.items():
    os.mkdir(place)
    linux.mount(source, place, flags=linux.MS_BIND)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
os.chdir("/")
python = "/srv/python/bin/" + os.path.basename(os.path.realpath(sys.executable))
os.execve(python, [python, "-c", sys.argv[3]],
          {"PYTHONPATH": "/srv/source:/srv/packages", "PYTHONDONTWRITEBYTECODE": "1"})
"""
CHECK = "from puna.cli.main import main; import sys; sys.exit(main(['sandbox', 'check', '--json', '--kind', '{kind}']))"


@pytest.mark.parametrize("kind", ["escape", "reward"])
def test_an_ordinary_user_is_as_safe(kind: str) -> None:
    if os.geteuid():
        pytest.skip("needs root to become somebody else; as an ordinary user the other tests say the same")
    import puna

    source = str(Path(puna.__file__).resolve().parents[1])
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    command = [sys.executable, "-c", AS_NOBODY, source, packages, CHECK.format(kind=kind)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"needs a mount namespace to show the interpreter to others: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "ordinary user (65534)" in said["machine"]["user"]
    if said["level"] == "limits":
        pytest.skip(f"an ordinary user reaches 'limits' here: {said['walls']}")
    assert [attack["name"] for attack in said["attacks"] if not attack["good"]] == []
