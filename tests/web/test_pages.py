"""Each page's own policy, and the kit's files: languages complete, and no circles among the scripts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import puna.apps
from puna.web.pages import STATIC, PagePolicy

APPS = Path(puna.apps.__path__[0])
STATICS = [STATIC, *sorted(APPS.glob("*/static"))]


def policy_of(headers: dict[str, str]) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))


def test_a_page_may_do_nothing_that_it_does_not_ask_for() -> None:
    headers = PagePolicy().headers()
    policy = policy_of(headers)
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["worker-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "=(self)" not in headers["permissions-policy"]
    assert "camera=()" in headers["permissions-policy"]


def test_one_page_has_the_camera_and_no_other() -> None:
    camera = PagePolicy(permissions=("camera",), media=("blob:",)).headers()
    assert "camera=(self)" in camera["permissions-policy"]
    assert "microphone=()" in camera["permissions-policy"]
    assert policy_of(camera)["media-src"] == "'self' blob:"
    world = PagePolicy(images=("blob:",), workers=("blob:",), permissions=("xr-spatial-tracking",), wasm=True).headers()
    assert "camera=()" in world["permissions-policy"]
    assert policy_of(world)["img-src"] == "'self' data: blob:"
    assert policy_of(world)["script-src"] == "'self' 'wasm-unsafe-eval'"


def test_the_account_pages_have_their_policy(site: Any) -> None:
    for path in ("/account", "/account/invitation"):
        page = site.browser().get(path)
        assert page.status_code == 200
        assert policy_of(dict(page.headers))["script-src"] == "'self'"
        assert page.headers["referrer-policy"] == "no-referrer"  # an invitation's address goes nowhere
        assert "<style" not in page.text
        assert "style=" not in page.text
    kit = site.browser().get("/static/web/js/account.js")
    assert kit.headers["content-type"].startswith("text/javascript")
    assert site.browser().get("/static/web/%2e%2e/pages.py").status_code == 404


def scripts(static: Path) -> list[Path]:
    return sorted(static.glob("js/*.js"))


@pytest.mark.parametrize("static", STATICS, ids=lambda path: path.parent.name)
def test_every_text_is_there_in_every_language(static: Path) -> None:
    known = {path.stem: json.loads(path.read_text()) for path in (static / "i18n").glob("*.json")}
    assert set(known) == {"en", "zh", "es"}
    assert known["en"].keys() == known["zh"].keys() == known["es"].keys()
    kit = json.loads((STATIC / "i18n" / "en.json").read_text())
    for key, text in known["en"].items():
        for other in known.values():
            assert set(re.findall(r"\{\w+\}", other[key])) == set(re.findall(r"\{\w+\}", text)), key
    if static != STATIC:
        assert not known["en"].keys() & kit.keys()  # no product changes the kit's texts
    for path in scripts(static):
        source = path.read_text()
        assert len(source.splitlines()) <= 300, path
        assert set(re.findall(r'\bt\("([\w.]+)"', source)) <= {*kit, *known["en"]}, path


def test_scripts_import_in_no_circle_and_no_product_another() -> None:
    imports: dict[str, set[str]] = {}
    for static in STATICS:
        prefix = "/static/web/js/" if static == STATIC else f"{static.parent.name}/"
        for path in scripts(static):
            found = re.findall(r'from "([^"]+)"', path.read_text())
            imports[prefix + path.name] = {
                one if one.startswith("/") else prefix + one.removeprefix("./") for one in found
            }
    for name, targets in imports.items():
        assert targets <= imports.keys(), name
        if name.startswith("/static/web/"):
            assert all(target.startswith("/static/web/") for target in targets), name
    while leaves := {name for name, targets in imports.items() if not targets & imports.keys()}:
        imports = {name: targets for name, targets in imports.items() if name not in leaves}
    assert not imports, f"these scripts import each other in a circle, or are imported by one: {sorted(imports)}"
