import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ddcap.commands import main
from experiments.markdown import to_markdown
from experiments.report import render_report
from experiments.run import load_ablation
from experiments.verdict import interval_with_seeds, settle, verdict

DOCS = Path(__file__).parents[2] / "docs"


def test_one_seed_settles_nothing():
    """However sure the images are."""
    for rows in (([50.0], [20.0, 20.1]), ([50.0, 50.1], [20.0]), ([50.0], [20.0])):
        assert interval_with_seeds(30.0, [29.9, 30.1], *rows) is None
    assert verdict(None) == "not settled"


def test_seeds_that_differ_by_more_than_the_rows_settle_nothing():
    """Row e over row c on Flickr8k, had c had a second seed."""
    interval = interval_with_seeds(3.9, [2.6, 5.2], [28.1, 17.7], [19.1, 19.0])
    assert verdict(interval) == "not settled"
    assert interval[0] < -10 and interval[1] > 18
    assert sum(interval) / 2 == pytest.approx(3.9)


def test_seeds_that_agree_leave_the_images_interval():
    assert interval_with_seeds(3.0, [2.0, 4.0], [5.0, 5.0], [2.0, 2.0]) == pytest.approx([2.0, 4.0])
    close = interval_with_seeds(3.0, [2.0, 4.0], [5.0, 5.01, 5.02], [2.0, 2.01, 2.0])
    assert close == pytest.approx([2.0, 4.0], abs=0.05) and verdict(close) == "agrees"


def test_both_directions_can_be_settled():
    rows = [40.0, 40.4], [46.0, 45.8]
    assert verdict(interval_with_seeds(-5.7, [-7.0, -4.4], *rows)) == "disagrees"
    assert verdict(interval_with_seeds(5.7, [4.4, 7.0], *reversed(rows))) == "agrees"


@pytest.mark.parametrize(("seeds", "of_images", "of_seeds"), [(2, 0.3, 1.0), (3, 1.0, 1.0), (5, 0.1, 2.0)])
def test_about_one_in_twenty_equal_pairs_seems_to_differ(seeds, of_images, of_seeds):
    """Against simulated rows: images and seeds drawn anew, no difference but by chance."""
    generator = np.random.default_rng(3)
    settled, times = 0, 400
    for _ in range(times):
        rows = of_seeds * generator.standard_normal((2, seeds))
        difference = rows[0].mean() - rows[1].mean() + of_images * generator.standard_normal()
        ends = [difference - 1.96 * of_images, difference + 1.96 * of_images]
        settled += verdict(interval_with_seeds(difference, ends, *rows.tolist())) != "not settled"
    assert settled / times < 0.09


def test_results_that_were_judged_by_images_alone_are_judged_anew(tmp_path):
    content = json.loads((DOCS / "results" / "flickr8k.json").read_text())
    for claim in content["claims"]:
        claim["verdict"] = "agrees"
        claim.pop("interval_95_seeds", None)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    verdicts = {(c["better"], c["worse"]): c["verdict"] for c in load_ablation(tmp_path)["claims"]}
    assert verdicts["e", "c"] == verdicts["f", "e"] == "not settled"
    assert verdicts["g", "twin"] == "disagrees"
    assert load_ablation(path) == load_ablation(tmp_path)


def test_claims_with_p_values_are_one_family_and_curves_another(results_of_flickr8k):
    """Real rows' differences, given p-values as if they had been drawn."""
    old = results_of_flickr8k["claims"]
    p_values = [0.011, 0.02, 0.04, None, 0.0004]
    claims = [{**claim, "p": p} for claim, p in zip(old, p_values, strict=False)]
    claims[0]["difference"] = -1.0
    leads = {"twin": {**claims[0], "difference": 2.0}, "twin_beams": {**claims[1], "difference": -2.0}}
    curves = {"1.0": {"rows": {}, "differences": leads}}
    settled = settle({**results_of_flickr8k, "claims": claims, "curves": curves})
    told = [(claim["p_holm"], claim["verdict"]) for claim in settled["claims"]]
    assert told == [
        (pytest.approx(0.033), "disagrees"),
        (pytest.approx(0.04), "agrees"),
        (pytest.approx(0.04), "agrees"),
        (None, "not settled"),
        (pytest.approx(0.0016), "agrees"),
    ]
    judged = settled["curves"]["1.0"]["differences"]
    assert judged["twin"]["p_holm"] == pytest.approx(0.022) and judged["twin"]["verdict"] == "agrees"
    assert judged["twin_beams"]["p_holm"] == pytest.approx(0.022)
    assert judged["twin_beams"]["verdict"] == "disagrees"
    assert settle(settled) == settled
    claims[2]["p"] = 0.06
    assert settle({**settled, "claims": claims})["claims"][2]["verdict"] == "not settled"


def test_many_comparisons_settle_less_than_one(results_of_flickr8k):
    claims = [{**claim, "p": 0.01} for claim in results_of_flickr8k["claims"]]
    assert {one["verdict"] for one in settle({**results_of_flickr8k, "claims": claims[:4]})["claims"]} == {
        "agrees" if claim["difference"] > 0 else "disagrees" for claim in claims[:4]
    }
    assert {one["verdict"] for one in settle({**results_of_flickr8k, "claims": claims})["claims"]} == {
        "not settled"
    }


def test_the_committed_results_hold_their_verdicts():
    content = json.loads((DOCS / "results" / "flickr8k.json").read_text())
    assert settle(content) == content


def test_pages_say_how_many_comparisons_they_make(results_of_flickr8k):
    count = len(results_of_flickr8k["claims"])
    for page in (to_markdown(results_of_flickr8k), render_report(results_of_flickr8k, [])):
        assert f"These are {count} comparisons, each at 95 %" in page
        assert f"{count / 20:.1f} of them would on average seem settled by chance" in page
        assert "makes 18 more" in page and page.count("one seed only") == 7


@pytest.fixture
def results_of_flickr8k():
    return load_ablation(DOCS / "results" / "flickr8k.json")


def tables_of(results, tmp_path):
    """The report of stored results as Markdown, made by the project's own command."""
    tables = tmp_path / "tables.md"
    assert main(["report", str(DOCS / "results" / f"{results}.json"), "--output", str(tables)]) == 0
    return tables.read_text()


def test_the_page_of_the_comparison_holds_the_tables_of_its_json(tmp_path, capsys):
    """Nobody edits a figure."""
    page = (DOCS / "research" / "comparison.md").read_text()
    text = tables_of("comparison", tmp_path)
    assert capsys.readouterr().out.strip() == str(tmp_path / "tables.md")
    text = text[: text.index("## Trainings")]
    blocks = [block for block in re.split(r"\n\n", text) if not block.startswith("#")]
    assert len(blocks) > 10
    for block in blocks:
        assert block.strip() in page, block[:200]


def test_the_tables_of_the_earlier_ablation_are_those_of_its_json(tmp_path):
    text = tables_of("flickr8k", tmp_path)
    page = (DOCS / "research" / "earlier_ablation.md").read_text()
    tables = [block.strip() for block in re.split(r"\n\n", page) if block.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert table in text, table[:200]


def test_the_opening_of_the_results_says_what_the_tables_say():
    results = load_ablation(DOCS / "results" / "comparison.json")
    opening = (DOCS / "results.md").read_text().partition("## How to repeat it")[0]
    claims = {(one["better"], one["worse"]): one for one in results["claims"]}
    for pair in (("c", "a"), ("f", "e"), ("f", "d"), ("f", "d_noised"), ("f", "d_known"), ("g", "f")):
        low, high = claims[pair]["interval_95_seeds"]
        says = f"{claims[pair]['difference']:+.1f}", f"[{low:+.1f}, {high:+.1f}]"
        settled = "no" if claims[pair]["verdict"] == "not settled" else "yes"
        row = next(line for line in opening.splitlines() if says[1] in line)
        assert says[0] in row and f"| {settled} |" in row, row
    for content in results["curves"].values():
        for lead in content["differences"].values():
            assert f"{lead['difference']:+.1f}" in opening
            assert lead["verdict"] == "disagrees"


def blind_read(name):
    """Rows and number of pairs of a blind read; how often each row won by fidelity, fluency and both."""
    content = json.loads((DOCS / "results" / f"{name}.json").read_text())
    pairs = content["pairs"]
    fidelity, fluency = (Counter(pair[question] for pair in pairs) for question in ("fidelity", "fluency"))
    together = Counter(pair["fidelity" if pair["fidelity"] != "same" else "fluency"] for pair in pairs)
    return content["rows"], len(pairs), fidelity, fluency, together


def test_the_blind_read_counts_as_the_page_says():
    (ours, twin), _, fidelity, fluency, together = blind_read("blind_read")
    page = (DOCS / "research" / "comparison.md").read_text()
    assert f"truer to the image {fidelity[ours]} times, those of AR {fidelity[twin]} times" in page
    assert f"better English {fluency[twin]} times, those of g {fluency[ours]} times" in page
    assert f"{together[ours]} to {together[twin]}" in page


def test_the_blind_read_of_distillation_counts_as_the_page_says():
    (student, teacher), count, fidelity, fluency, together = blind_read("blind_read_distilled")
    page = (DOCS / "research" / "comparison.md").read_text()
    assert count == 100
    assert f"truer {fidelity[student]} times, the teacher {fidelity[teacher]} times" in page
    assert f"better {fluency[student]} times, the teacher's {fluency[teacher]} times" in page
    assert f"Together it is {together[student]} to {together[teacher]}." in page


def test_the_blind_read_of_own_captions_counts_as_the_page_says():
    (old, new), count, fidelity, fluency, together = blind_read("blind_read_own_captions")
    page = (DOCS / "research" / "experiments.md").read_text()
    assert f"In a blind read of {count} COCO images" in page
    assert f"truer {fidelity[old]} times and the new one {fidelity[new]} times" in page
    assert f"better {fluency[old]} times, the new one's {fluency[new]} times" in page
    assert f"together it is {together[old]} to {together[new]} " in page
