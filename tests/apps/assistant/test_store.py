"""Conversations in the database: trees, users, search, export, and databases of other versions."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.apps.assistant import export
from puna.apps.assistant.imports import read_conversation
from puna.apps.assistant.schema import SCHEMA
from puna.apps.assistant.store import Store
from puna.core.errors import PunaError
from puna.web import database
from puna.web.errors import MissingError
from puna.web.text import fold, snippet, title_of


def opened(place: str) -> Store:
    return Store(database.open(place, [SCHEMA]))


@pytest.fixture
def store(place: str) -> Iterator[Store]:
    store = opened(place)
    yield store
    store.engine.dispose()


def talk(store: Store, user: str = "ana", text: str = "What is ice?", answer: str = "Frozen water.") -> tuple:
    """A conversation of one question and its answer: (conversation, question, answer) ids."""
    made = store.create(user, model="m")
    mine = store.add_message(user, made["id"], parent=None, role="user", content=text)
    said = store.add_message(user, made["id"], parent=mine["id"], role="assistant", content=answer, model="m")
    store.write(user, said["id"], finish_reason="stop")
    return made["id"], mine["id"], said["id"]


def test_a_tree_of_messages_shows_one_branch(store: Store) -> None:
    id, mine, said = talk(store)
    other = store.add_message("ana", id, parent=mine, role="assistant", content="Cold.")["id"]
    edited = store.add_message("ana", id, parent=None, role="user", content="What is snow?")["id"]
    assert [m["id"] for m in store.path("ana", id)] == [edited]
    assert store.path("ana", id)[0]["siblings"] == [mine, edited]
    store.show("ana", id, mine)  # down to the newest under it
    assert [m["id"] for m in store.path("ana", id)] == [mine, other]
    assert store.path("ana", id)[1]["siblings"] == [said, other]
    assert [m["content"] for m in store.path("ana", id, to=said)] == ["What is ice?", "Frozen water."]
    assert len(store.tree("ana", id)) == 4


def test_the_first_question_is_the_title(store: Store) -> None:
    id, _, _ = talk(store, text="\n# Why is the sea salty?\nTell me.")
    assert store.conversation("ana", id)["title"] == "Why is the sea salty?"
    assert title_of("word " * 40).endswith("word…")
    assert len(title_of("x" * 500)) == 65


@pytest.mark.parametrize("query", ["FROZEN", "ice", "  water ", "agua CALIENTE É"])
def test_search_finds_titles_and_texts_in_any_case(store: Store, query: str) -> None:
    id, _, _ = talk(store)
    accented, _, _ = talk(store, text="¿agua caliente é?", answer="sí")
    found = [row["id"] for row in store.conversations("ana", query=query)]
    assert found == [accented if "É" in query else id]
    assert store.conversations("bo", query=query) == []


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("a nai\u0308ve idea", "NAÏVE"),
        ("a naïve idea", "nai\u0308ve"),
        ("Straße", "STRASSE"),
        ("STRASSE", "straße"),
        ("İstanbul", "istanbul"),
        ("İstanbul", "İSTANBUL"),
        ("ISTANBUL", "İstanbul"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "Full Width"),
        ("full width", "ＦＵＬＬ"),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς"),
        ("the ﬁrst", "FIRST"),
        ("ｶﾀｶﾅ", "カタカナ"),
    ],
)
def test_search_folds_case_and_form_on_both_sides(store: Store, text: str, query: str) -> None:
    id, _, _ = talk(store, text="Unrelated", answer=f"İİİ ß {'x' * 60} {text} {'y' * 60}")
    talk(store, text="other")
    (found,) = store.conversations("ana", query=query)
    assert found["id"] == id
    assert " ".join(text.split()) in found["snippet"]  # and the passage is that place, wherever folding changes lengths


LETTERS = st.text("aäßİıſΣςﬁＡxＸ 日", max_size=60)


@given(LETTERS, LETTERS, LETTERS)
@settings(max_examples=300)
def test_a_passage_contains_what_was_found(before: str, query: str, after: str) -> None:
    text = before + query + after
    if query.strip() and fold(query) in fold(text):
        assert fold("".join(query.split())) in fold("".join(snippet(text, query).split()))


def test_nothing_in_a_search_is_a_wildcard(store: Store) -> None:
    talk(store)
    id, _, _ = talk(store, text="100 % or a_b or c\\d", answer="yes")
    for query in ("%", "_", "\\", "100 %", "％", "＿"):
        assert [row["id"] for row in store.conversations("ana", query=query)] == [id]
    assert store.conversations("ana", query="100 %")[0]["snippet"] == "100 % or a_b or c\\d"


def test_what_is_somebody_elses_is_missing(store: Store) -> None:
    id, mine, said = talk(store)
    comparison = store.add_comparison("ana", prompt=[{"role": "user", "content": "x"}], models=("a", "b"))["id"]
    questions = [
        lambda: store.conversation("bo", id),
        lambda: store.change("bo", id, {"title": "x"}),
        lambda: store.delete("bo", id),
        lambda: store.add_message("bo", id, parent=None, role="user", content="x"),
        lambda: store.write("bo", said, content="x"),
        lambda: store.message("bo", id, said),
        lambda: store.tokens("bo", id, said),
        lambda: store.drop_message("bo", id, said),
        lambda: store.path("bo", id),
        lambda: store.tree("bo", id),
        lambda: store.dialogue("bo", id, mine),
        lambda: store.show("bo", id, said),
        lambda: store.rate("bo", said, rating=1, correction=None),
        lambda: store.comparison("bo", comparison),
        lambda: store.write_comparison("bo", comparison, better="a"),
        lambda: export.conversation_json(store, "bo", id),
    ]
    for question in questions:
        with pytest.raises(MissingError):
            question()
    assert store.conversations("bo") == []
    assert store.feedback("bo") == []
    assert list(store.comparisons("bo")) == []
    other, _, _ = talk(store, "bo")
    with pytest.raises(MissingError):  # one's own conversation is no way to another's message
        store.add_message("bo", other, parent=said, role="user", content="x")
    with pytest.raises(MissingError):
        store.message("bo", other, said)


def test_deleting_takes_messages_and_feedback_with_it(store: Store) -> None:
    id, _, said = talk(store)
    store.rate("ana", said, rating=1, correction="x")
    store.delete("ana", id)
    with store.engine.connect() as raw:
        for table in ("conversations", "messages", "feedback"):
            assert raw.exec_driver_sql(f"select count(*) from {table}").scalar() == 0


def test_sqlite_lets_others_read_while_one_writes(tmp_path: Path) -> None:
    opened(str(tmp_path / "data")).engine.dispose()
    with sqlite3.connect(tmp_path / "data" / "assistant.db") as raw:
        assert raw.execute("pragma journal_mode").fetchone() == ("wal",)


def test_an_answer_nobody_writes_any_more_was_interrupted(store: Store, place: str) -> None:
    id, mine, _ = talk(store)
    half = store.add_message("ana", id, parent=mine, role="assistant", content="Half an")["id"]
    store.engine.dispose()
    again = opened(place)
    assert again.message("ana", id, half)["finish_reason"] == "interrupted"
    assert again.message("ana", id, half)["content"] == "Half an"
    again.engine.dispose()


def test_a_newer_database_is_refused(store: Store, place: str) -> None:
    with store.engine.begin() as raw:
        raw.exec_driver_sql("update puna_meta set value = '999'")
    store.engine.dispose()
    with pytest.raises(PunaError, match=r"newer Puna \(schema 999"):
        opened(place)


def test_places_that_are_no_database(tmp_path: Path) -> None:
    with pytest.raises(PunaError, match="mysql database"):
        opened("mysql://localhost/x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(PunaError, match="in the way"):
        opened(str(tmp_path / "file" / "data"))


def test_texts_no_database_can_hold(store: Store) -> None:
    id, _, said = talk(store, text="a\0b \ud800 c", answer="x\0")
    assert store.path("ana", id)[0]["content"] == "a\ufffdb ? c"
    assert store.message("ana", id, said)["content"] == "x\ufffd"


def test_export(store: Store) -> None:
    id, _, said = talk(store)
    store.change("ana", id, {"system": "Be brief.", "title": "Ice"})
    text = export.conversation_markdown(store, "ana", id)
    assert text.startswith("# Ice\n\nm, ")
    assert text.endswith("## System\n\nBe brief.\n\n## You\n\nWhat is ice?\n\n## m\n\nFrozen water.\n")
    for _ in range(4):
        talk(store, text="more")
    store.rate("ana", said, rating=-1, correction=None)
    whole = json.loads(json.dumps(export.everything(store, "ana", page=2)))
    assert len(whole["conversations"]) == 5
    assert [m["content"] for m in whole["conversations"][-1]["messages"]] == ["What is ice?", "Frozen water."]
    assert whole["feedback"] == [{"message": said, "rating": -1, "correction": None}]


def test_an_import_is_an_export_again(store: Store) -> None:
    id, mine, _ = talk(store)
    store.add_message("ana", id, parent=mine, role="assistant", content="Cold.", model="n", stage="base")
    store.change("ana", id, {"system": "Be brief.", "title": "Ice", "settings": {"seed": 1}})
    sent = json.loads(json.dumps(export.conversation_json(store, "ana", id)))
    made = store.add_imported("bo", read_conversation(sent), model="other")
    kept = export.conversation_json(store, "bo", made["id"])
    unlike = {"id", "leaf", "user", "messages"}
    assert {key: kept[key] for key in kept.keys() - unlike} == {key: sent[key] for key in sent.keys() - unlike}
    same = ("role", "content", "model", "stage", "created", "finish_reason", "usage")
    assert [{key: m[key] for key in same} for m in kept["messages"]] == [
        {key: m[key] or {"finish_reason": "stop"}.get(key if m["role"] == "assistant" else "") for key in same}
        for m in sent["messages"]
    ]
    assert [m["content"] for m in store.path("bo", made["id"])] == ["What is ice?", "Cold."]
    assert len(store.path("bo", made["id"])[1]["siblings"]) == 2
    assert store.conversations("ana")[0]["id"] == id


def test_preferences_from_corrections_thumbs_and_comparisons(store: Store) -> None:
    id, mine, said = talk(store)
    store.change("ana", id, {"system": "Be brief."})
    better = store.add_message("ana", id, parent=mine, role="assistant", content="Solid water.")["id"]
    store.rate("ana", said, rating=-1, correction="Water below 0 °C.")
    store.rate("ana", better, rating=1, correction=None)
    _, _, alone = talk(store, text="And steam?", answer="Hot.")
    store.rate("ana", alone, rating=1, correction=None)
    prompt = [{"role": "user", "content": "Which?"}]
    row = store.add_comparison("ana", prompt=prompt, models=("a", "b"))
    store.write_comparison("ana", row["id"], text_a="first", text_b="second", better="b")
    same = store.add_comparison("ana", prompt=prompt, models=("a", "b"))
    store.write_comparison("ana", same["id"], better="same")
    rows = [json.loads(line) for line in export.preferences(store, "ana")]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is ice?"}]
    assert rows == [
        {"prompt": asked, "chosen": "Water below 0 °C.", "rejected": "Frozen water.", "source": "correction"},
        {"prompt": asked, "chosen": "Solid water.", "rejected": "Frozen water.", "source": "thumbs"},
        {
            "prompt": [{"role": "user", "content": "And steam?"}],
            "chosen": "Hot.",
            "rejected": None,
            "source": "thumbs",
        },
        {"prompt": prompt, "chosen": "second", "rejected": "first", "source": "comparison"},
    ]
    store.rate("ana", alone, rating=None, correction=None)
    assert len(list(export.preferences(store, "ana"))) == 3


def test_a_file_of_the_previous_schema_is_migrated_and_saved_before(tmp_path: Path) -> None:
    file = tmp_path / "assistant.db"
    with sqlite3.connect(file) as old:
        old.executescript((Path(__file__).with_name("schema_1.sql")).read_text())
        assert "settings" not in columns(old, "comparisons")
    store = opened(str(tmp_path))
    with sqlite3.connect(file) as new:
        assert "settings" in columns(new, "comparisons")
        assert new.execute("select version_num from puna_version_assistant").fetchall() == [("assistant_0003",)]
        assert new.execute("select value from puna_meta").fetchall() == [("2",)]  # so that an older Puna refuses it
    (conversation,) = store.conversations("local")
    assert [message["content"] for message in store.path("local", conversation["id"])] == [
        "What is ice?",
        "Frozen water.",
    ]
    assert store.path("local", conversation["id"])[1]["feedback"]["rating"] == 1
    (comparison,) = store.comparisons("local")
    assert (comparison["better"], comparison["settings"]) == ("b", None)
    made = store.add_comparison("local", prompt=[], models=("a", "b"), settings={"seed": 1})
    assert store.comparison("local", made["id"])["settings"] == {"seed": 1}
    store.engine.dispose()
    (saved,) = tmp_path.glob("*before-upgrade*.db")
    assert saved.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(saved) as backup:
        assert "settings" not in columns(backup, "comparisons")
        assert backup.execute("select count(*) from messages").fetchone() == (2,)
    opened(str(tmp_path)).engine.dispose()  # nothing left to do, so nothing is saved again
    assert len(list(tmp_path.glob("*before-upgrade*.db"))) == 1


def columns(database: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in database.execute(f"pragma table_info({table})")}
