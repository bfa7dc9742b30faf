"""The section on abilities: every stage and figure is shown, and model text is escaped."""

from puna.train.report.abilities import abilities

ROW = {
    "ability": "planning",
    "task": "planning.grid",
    "level": 2,
    "about": "4 by 4",
    "constant": 0.08,
    "stages": [
        {
            "stage": "before",
            "problems": 200,
            "greedy": 0.0,
            "greedy_interval": [0.0, 0.019],
            "pass_1": None,
            "pass_1_interval": None,
            "k": 8,
            "pass_k": None,
        },
        {
            "stage": "after RL",
            "problems": 200,
            "greedy": 0.615,
            "greedy_interval": [0.546, 0.68],
            "pass_1": 0.4321,
            "pass_1_interval": [0.39, 0.47],
            "k": 8,
            "pass_k": 0.9,
        },
    ],
    "examples": [{"stage": "after RL", "prompt": "S.\n.G", "text": "<script>alert(1)</script>", "right": False}],
}


def test_every_stage_has_its_figures_and_intervals():
    page = abilities([ROW])
    for text in (
        "planning.grid, level 2: 4 by 4",
        "constant answer scores 8%",
        "61.5%",
        "54.6% – 68.0%",
        "43.2%",
        "90.0%",
    ):
        assert text in page
    assert page.index("before") < page.index("after RL")
    assert "pass@8" in page
    assert "None" not in page


def test_columns_of_samples_are_left_out_where_none_were_drawn():
    stages = [{**stage, "pass_1": None, "pass_1_interval": None, "pass_k": None} for stage in ROW["stages"]]
    page = abilities([{**ROW, "stages": stages}])
    assert "61.5%" in page
    assert "pass@" not in page


def test_what_a_model_wrote_stays_text():
    page = abilities([ROW])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_without_rows_there_is_no_section():
    assert abilities([]) == ""
