"""Accounts over HTTP: the owner's link, invitations, passwords, keys, sessions, and what each role may do."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from puna.core.errors import PunaError
from puna.web.accounts.throttle import ATTEMPTS

PASSWORD = "a long enough password"


def test_the_owners_link_works_once_and_makes_the_first_owner(site: Any) -> None:
    link = site.web.owner_link("http://localhost:8000")
    token = link.partition("/account/invitation#")[2]
    browser = site.browser()
    assert browser.get("/app/account").status_code == 401
    assert browser.post("/app/invitations/look-up", json={"token": token}).json() == {"role": "owner", "name": None}
    body = {"token": token, "name": " Ana ", "password": PASSWORD}
    assert browser.post("/app/invitations/accept", json=body).json() == {"user": "Ana", "role": "owner"}
    me = browser.get("/app/account").json()
    assert (me["name"], me["role"], me["id"]) == ("Ana", "owner", "local")  # what was stored for `local` is the owner's
    again = site.browser().post("/app/invitations/accept", json={**body, "name": "Bo"})
    assert (again.status_code, again.json()["error"]["code"]) == (404, "bad_invitation")
    assert site.web.owner_link("http://localhost:8000") is None


def test_a_newer_owners_link_replaces_the_older(site: Any) -> None:
    first, second = (site.web.owner_link("x").partition("#")[2] for _ in range(2))
    browser = site.browser()
    assert browser.post("/app/invitations/look-up", json={"token": first}).status_code == 404
    assert browser.post("/app/invitations/look-up", json={"token": second}).status_code == 200


def test_an_owner_invites_and_the_invited_signs_in_with_a_password(site: Any) -> None:
    ana = site.person("Ana", "owner")
    made = ana.post("/app/invitations", json={"role": "creator"}).json()
    assert [one["id"] for one in ana.get("/app/invitations").json()["invitations"]] == [made["id"]]
    assert "token" not in ana.get("/app/invitations").json()["invitations"][0]
    bo = site.browser()
    body = {"token": made["token"], "name": "Bo", "password": PASSWORD}
    for name in ("ana", "ANA", "Ａna"):  # names are compared without case and in one form of Unicode
        taken = bo.post("/app/invitations/accept", json={**body, "name": name})
        assert (taken.status_code, taken.json()["error"]["code"]) == (409, "name_in_use")
    for weak in ("short", "Bo"):
        assert bo.post("/app/invitations/accept", json={**body, "password": weak}).status_code == 400
    assert bo.post("/app/invitations/accept", json=body).json() == {"user": "Bo", "role": "creator"}
    elsewhere = site.browser()
    wrong = elsewhere.post("/app/login", json={"name": "Bo", "password": PASSWORD + "x"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "wrong_password")
    assert elsewhere.post("/app/login", json={"name": "bo", "password": PASSWORD}).json() == {"user": "Bo"}
    assert elsewhere.get("/app/account").json()["role"] == "creator"


def test_a_withdrawn_invitation_does_not_work(site: Any) -> None:
    ana = site.person("Ana", "owner")
    made = ana.post("/app/invitations", json={}).json()
    assert ana.request("DELETE", f"/app/invitations/{made['id']}", json={}).status_code == 200
    assert site.browser().post("/app/invitations/look-up", json={"token": made["token"]}).status_code == 404
    assert ana.request("DELETE", f"/app/invitations/{made['id']}", json={}).status_code == 404


def test_sessions_are_listed_and_revoked_one_by_one(site: Any) -> None:
    phone, laptop = site.person("Ana"), site.browser()
    laptop.headers["user-agent"] = "Firefox on a laptop"
    laptop.post("/app/login", json={"name": "Ana", "password": PASSWORD})
    found = phone.get("/app/account/sessions").json()
    assert len(found["sessions"]) == 2
    other = next(one for one in found["sessions"] if one["id"] != found["current"])
    assert other["agent"] == "Firefox on a laptop"
    assert phone.request("DELETE", f"/app/account/sessions/{other['id']}", json={}).status_code == 200
    assert laptop.get("/app/account").status_code == 401
    assert phone.get("/app/account").status_code == 200
    phone.post("/app/logout", json={})
    assert phone.get("/app/account").status_code == 401


def test_a_cookie_outlives_signing_out_nowhere(site: Any) -> None:
    ana = site.person("Ana")
    value = ana.cookies["puna_session"]
    ana.post("/app/logout", json={})
    thief = site.browser()
    thief.cookies.set("puna_session", value)
    assert thief.get("/app/account").status_code == 401  # the session has ended on the server, not only in the browser


def test_a_new_password_ends_the_other_sessions(site: Any) -> None:
    ana, other = site.person("Ana"), site.browser()
    other.post("/app/login", json={"name": "Ana", "password": PASSWORD})
    body = {"current": "not it", "new": "another long password"}
    assert ana.post("/app/account/password", json=body).status_code == 403
    assert ana.post("/app/account/password", json={**body, "current": PASSWORD}).status_code == 200
    assert ana.get("/app/account").status_code == 200
    assert other.get("/app/account").status_code == 401
    assert other.post("/app/login", json={"name": "Ana", "password": PASSWORD}).status_code == 401


def test_a_link_for_a_new_password(site: Any) -> None:
    ana, bo = site.person("Ana", "owner"), site.person("Bo")
    id = bo.get("/app/account").json()["id"]
    token = ana.post(f"/app/accounts/{id}/password-link", json={}).json()["token"]
    browser = site.browser()
    assert browser.post("/app/invitations/look-up", json={"token": token}).json() == {"role": "member", "name": "Bo"}
    body = {"token": token, "password": "a new password of bo's"}
    assert browser.post("/app/invitations/accept", json=body).json()["user"] == "Bo"
    assert bo.get("/app/account").status_code == 401
    assert browser.get("/app/account").json()["id"] == id


def test_api_keys(site: Any) -> None:
    ana = site.person("Ana")
    made = ana.post("/app/account/keys", json={"label": "my script"}).json()
    program = site.browser(authorization=f"Bearer {made['key']}")
    del program.headers["origin"]
    assert program.get("/app/account").json()["name"] == "Ana"
    (listed,) = ana.get("/app/account/keys").json()["keys"]
    assert listed["label"] == "my script"
    assert "key" not in listed
    assert made["key"].startswith(listed["hint"])
    assert listed["used"] is not None
    browser = site.browser()
    assert browser.post("/app/login", json={"key": made["key"]}).json() == {"user": "Ana"}
    assert browser.get("/app/account").json()["name"] == "Ana"
    assert ana.request("DELETE", f"/app/account/keys/{made['id']}", json={}).status_code == 200
    assert program.get("/app/account").status_code == 401


def test_a_disabled_account_is_out_at_once_and_keeps_its_data(site: Any) -> None:
    ana, bo = site.person("Ana", "owner"), site.person("Bo")
    id = bo.get("/app/account").json()["id"]
    key = bo.post("/app/account/keys", json={"label": "x"}).json()["key"]
    assert ana.patch(f"/app/accounts/{id}", json={"disabled": True}).json()["disabled"]
    assert bo.get("/app/account").status_code == 401
    assert site.browser(authorization=f"Bearer {key}").get("/app/account").status_code == 401
    assert site.browser().post("/app/login", json={"name": "Bo", "password": PASSWORD}).status_code == 401
    ana.patch(f"/app/accounts/{id}", json={"disabled": False})
    assert site.browser(authorization=f"Bearer {key}").get("/app/account").json()["id"] == id


def test_the_last_owner_stays(site: Any) -> None:
    ana = site.person("Ana", "owner")
    path = f"/app/accounts/{ana.get('/app/account').json()['id']}"
    for change in ({"role": "member"}, {"disabled": True}):
        refused = ana.patch(path, json=change)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "last_owner")
    assert ana.get("/app/accounts").json()["accounts"][0]["role"] == "owner"
    bo = site.person("Bo")
    ana.patch(f"/app/accounts/{bo.get('/app/account').json()['id']}", json={"role": "owner"})
    assert ana.patch(path, json={"role": "member"}).status_code == 200
    assert ana.get("/app/accounts").status_code == 403
    assert bo.get("/app/accounts").status_code == 200


def test_guessing_is_slowed_down(site: Any) -> None:
    site.person("Ana")
    site.person("Bo")
    browser = site.browser()
    for _ in range(ATTEMPTS):
        assert browser.post("/app/login", json={"name": "ANA", "password": "guessed it"}).status_code == 401
    slowed = browser.post("/app/login", json={"name": "Ana", "password": PASSWORD})
    assert (slowed.status_code, slowed.json()["error"]["code"]) == (429, "too_many_attempts")
    assert int(slowed.headers["retry-after"]) > 0
    assert browser.post("/app/login", json={"name": "Bo", "password": PASSWORD}).status_code == 200
    for _ in range(ATTEMPTS):
        assert browser.post("/app/login", json={"key": "not-a-key"}).status_code == 401
    assert browser.post("/app/login", json={"key": "not-a-key"}).status_code == 429


def test_no_secret_is_in_the_database(site: Any, tmp_path: Path) -> None:
    ana = site.person("Ana", "owner")
    key = ana.post("/app/account/keys", json={"label": "x"}).json()["key"]
    token = ana.post("/app/invitations", json={}).json()["token"]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").iterdir())
    for secret in (key, token, PASSWORD, ana.cookies["puna_session"]):
        assert secret.encode() not in stored
    with sqlite3.connect(tmp_path / "data" / "assistant.db") as raw:
        assert raw.execute("select password from accounts").fetchone()[0].startswith("$argon2id$")


# -- who must sign in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "required"),
    [
        ({"accounts": None}, False),
        ({"accounts": None, "host": "0.0.0.0"}, True),
        ({"accounts": False, "host": "0.0.0.0"}, False),
        ({"accounts": True}, True),
        ({"accounts": None, "keys": {"key-of-ann": "ann"}}, True),
        ({"accounts": False, "keys": {"key-of-ann": "ann"}}, True),
    ],
)
def test_who_must_sign_in(make_site: Any, tmp_path: Path, settings: dict[str, Any], required: bool) -> None:
    with make_site(tmp_path, **settings) as site:
        assert site.web.auth.required is required
        assert site.browser().get("/app/account").status_code == (401 if required else 200)
        reachable = settings.get("accounts") or (settings.get("accounts") is None and "host" in settings)
        assert (site.web.owner_link("http://x") is not None) == bool(reachable)


def test_a_server_with_an_owner_stays_closed_on_this_machine_too(make_site: Any, tmp_path: Path) -> None:
    with make_site(tmp_path, accounts=True) as site:
        site.person("Ana", "owner")
    with make_site(tmp_path, accounts=None) as site:
        assert site.browser().get("/app/account").status_code == 401
        assert site.browser().post("/app/login", json={"name": "Ana", "password": PASSWORD}).status_code == 200


def test_names_of_the_key_file_are_accounts(make_site: Any, tmp_path: Path) -> None:
    keys = {"key-of-ann": "ann", "key-of-bob": "bob"}
    with make_site(tmp_path, accounts=None, keys=keys) as site:
        ann = site.browser()
        assert ann.post("/app/login", json={"key": "key-of-ann"}).json() == {"user": "ann"}
        me = ann.get("/app/account").json()
        assert (me["id"], me["role"], me["has_password"]) == ("ann", "creator", False)
        assert site.browser(authorization="Bearer key-of-bob").get("/app/account").json()["id"] == "bob"
        assert ann.get("/app/accounts").status_code == 403
        cookie = ann.cookies["puna_session"]
    with make_site(tmp_path, accounts=None, keys=keys) as site:  # sessions outlive a restart
        ann = site.browser()
        ann.cookies.set("puna_session", cookie)
        assert ann.get("/app/account").json()["id"] == "ann"
    with make_site(tmp_path, accounts=None, keys={"key-of-bob": "bob"}) as site:  # ... but not their key
        ann = site.browser()
        ann.cookies.set("puna_session", cookie)
        assert ann.get("/app/account").status_code == 401


def test_a_name_in_the_key_file_cannot_take_over_an_account(make_site: Any, tmp_path: Path) -> None:
    with make_site(tmp_path) as site:
        site.person("Ana", "owner")
    with (
        pytest.raises(PunaError, match="'ana', which is the name of another account"),
        make_site(tmp_path, keys={"key-of-ana-1": "ana"}),
    ):
        pass


def test_a_cookie_counts_only_for_our_own_pages(site: Any) -> None:
    ana = site.person("Ana")
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}):
        assert ana.get("/app/account", headers=headers).status_code == 401
    del ana.headers["origin"]
    assert ana.get("/app/account", headers={"sec-fetch-site": "cross-site"}).status_code == 401
    assert ana.get("/app/account", headers={"sec-fetch-site": "same-origin"}).status_code == 200
