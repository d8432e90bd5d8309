"""The pages of studies in a real browser, over a real server."""

import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from openrl.research.journal import Journal, read_state
from openrl.research.pages.document import html_report
from openrl.research.study import load_study
from tests.browser import TIMEOUT_S, start_browser, visit, wait_until
from tests.live_server import OPENRL, environment, openrl
from tests.research.sample_study import write_attempt, write_sample_study

expect.set_options(timeout=TIMEOUT_S * 1000)
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as running:
        yield running


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of two studies."""
    directory = tmp_path_factory.mktemp("shelf")
    write_sample_study(directory / "math", 14, 12, num_running=0)
    write_hostile_study(directory / "hostile")
    return directory


@pytest.fixture(scope="module")
def url(shelf: Path) -> Iterator[str]:
    """Where `openrl research serve` shows the shelf."""
    process = subprocess.Popen(
        (*OPENRL, "research", "serve", str(shelf)), env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        yield process.stdout.readline().split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def write_hostile_study(directory: Path) -> None:
    """Every text that an attempt can choose is markup."""
    write_sample_study(directory, 3, 4, num_running=0)
    file = directory / "study.toml"
    file.write_text(file.read_text().replace('"ppo"', f'"{HOSTILE}"').replace('"accuracy"', f'"{HOSTILE}"'))
    with Journal(directory) as journal:
        params = {**load_study(directory).defaults, "loss": HOSTILE}
        journal.append("started", 4, params=params, seed=1, is_promotion=False, at=1.0)
        journal.append("reported", 4, step=1, values={HOSTILE: 0.5})
        journal.append("ended", 4, state="failed", reason=HOSTILE, at=2.0)
    home = directory / "attempts" / "0004"
    home.mkdir()
    (home / "log.txt").write_text(HOSTILE)
    (home / "change.patch").write_text(f"+{HOSTILE}")


def report_of(directory: Path) -> str:
    return html_report(directory, load_study(directory), read_state(directory))


def column(page: Page, place: int) -> list[str]:
    return page.locator(f"table.attempts tbody td:nth-child({place})").all_inner_texts()


def test_an_attempt_that_begins_shows_without_reload(browser: Browser, url: str, shelf: Path):
    directory = write_sample_study(shelf / "growing", 3, 6, num_running=0)
    with visit(browser, f"{url}#/growing") as visited, Journal(directory) as journal:
        page = visited.page
        rows = page.locator("table.attempts tbody tr")
        expect(rows).to_have_count(3)
        write_attempt(directory, journal, 4, load_study(directory).defaults, random.Random(1), 6, is_over=False)
        expect(rows).to_have_count(4)
        expect(rows.nth(3)).to_contain_text("running")
        expect(page.locator("h1 + .state")).to_have_text("running")
        journal.append("reported", 4, step=5, values={"accuracy": 0.987654})
        expect(rows.nth(3)).to_contain_text("0.9877")
        journal.append("ended", 4, state="done", reason="", at=2e9)
        expect(page.locator(".tile.best")).to_contain_text("attempts 1, 2, 3, 4")
        assert not visited.complaints


def test_how_many_run_at_once_and_why_is_said_and_follows_the_server(browser: Browser, url: str, shelf: Path):
    directory = write_sample_study(shelf / "packed", 3, 6, num_running=0)
    file = directory / "study.toml"
    file.write_text(file.read_text().replace("parallel = 4", 'parallel = "auto"'))
    with visit(browser, f"{url}#/packed") as visited, Journal(directory) as journal:
        about = visited.page.locator(".about")
        expect(about).to_contain_text("up to 16 at once")
        for wanted in (1, 2):
            journal.append("packed", 0, wanted=wanted, why=f"why {wanted}", num_running=1, at=1.0)
            expect(about).to_contain_text(f"{wanted} of up to 16 at once: why {wanted}")
        assert visited.page.locator("table.attempts tbody tr").count() == 3
        assert not visited.complaints


def test_the_index_leads_to_a_study_whose_table_sorts(browser: Browser, url: str):
    with visit(browser, url) as visited:
        page = visited.page
        page.get_by_role("link", name="math").click()
        rows = page.locator("table.attempts tbody tr")
        expect(rows).to_have_count(14)
        page.get_by_role("button", name="accuracy", exact=True).click()
        expect(page.locator("th[aria-sort=descending]")).to_have_text("accuracy")
        values = [float(each) for each in column(page, 4)]
        assert values == sorted(values, reverse=True)
        page.get_by_role("button", name="loss", exact=True).click()
        assert column(page, 10) == sorted(column(page, 10))
        for chart in ("Best so far", "Parameters", "Curves"):
            assert page.get_by_label(chart, exact=True).locator("svg path").count() > 0
        assert not visited.complaints


def test_selected_attempts_show_log_patch_and_what_differs(browser: Browser, url: str):
    with visit(browser, f"{url}#/math") as visited:
        page = visited.page
        page.get_by_role("button", name="Open attempt 9").click()
        drawer = page.get_by_role("complementary")
        expect(drawer.get_by_label("Log of attempt 9")).to_contain_text("step   1  accuracy")
        expect(drawer.locator(".patch .added").first).to_contain_text("+    spread = stdev(rewards)")
        expect(drawer.locator(".params caption")).to_contain_text("defaults")
        page.get_by_label("Compare attempt 4").check()
        expect(drawer.locator(".params thead")).to_contain_text("attempt 4")
        expect(drawer.get_by_label("Log of attempt 4", exact=True)).to_be_visible()
        differs = drawer.locator(".params tr.differs").all_inner_texts()
        assert any("rate" in each for each in differs)
        page.mouse.move(1, 1)  # what lies under the pointer is marked too
        expect(page.locator("path.line.on")).to_have_count(4)  # in two charts
        assert page.url.endswith("#/math?9,4")
        page.set_viewport_size({"width": 1000, "height": 900})  # drawn anew, still marked
        expect(page.get_by_label("Curves", exact=True).locator("path.line.on")).to_have_count(2)
        page.keyboard.press("Escape")
        expect(drawer).to_be_hidden()
        assert not visited.complaints


def test_dragging_along_an_axis_filters_every_view(browser: Browser, url: str):
    with visit(browser, f"{url}#/math") as visited:
        page = visited.page
        rows = page.locator("table.attempts tbody tr")
        expect(rows).to_have_count(14)
        handle = page.locator(".axis.metric .brush-handle")
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 5, box["y"])
        page.mouse.down()
        page.mouse.move(box["x"] + 5, box["y"] + box["height"] * 0.4)
        page.mouse.up()
        wait_until(lambda: 0 < rows.count() < 14)
        assert page.locator("path.line.out").count() > 0
        page.get_by_role("button", name="Show all", exact=True).click()
        expect(rows).to_have_count(14)
        assert not visited.complaints


def test_what_attempts_write_is_never_markup(browser: Browser, url: str, shelf: Path, tmp_path: Path):
    report = tmp_path / "report.html"
    report.write_text(report_of(shelf / "hostile"))
    for address in (f"{url}#/hostile?4", f"{report.as_uri()}#/?4"):
        with visit(browser, address) as visited:
            page = visited.page
            expect(page.get_by_label("Log of attempt 4")).to_have_text(HOSTILE)
            expect(page.locator(".patch")).to_contain_text(HOSTILE)
            expect(page.locator(".reason")).to_have_text(HOSTILE)
            page.locator("circle.dot").first.hover()
            assert page.locator("img").count() == 0
            assert not visited.complaints


def test_nothing_is_wider_than_a_telephone(browser: Browser, url: str):
    for address in (url, f"{url}#/math", f"{url}#/math?9,4", f"{url}#/hostile?4"):
        with visit(browser, address, width=400, height=800, scheme="dark") as visited:
            page = visited.page
            expect(page.locator("a.study, table.attempts tbody tr").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_report_stands_alone_and_is_the_same_again(browser: Browser, shelf: Path, tmp_path: Path):
    first = tmp_path / "first.html"
    made = openrl("research", "report", str(shelf / "math"), "--html", str(first))
    assert made.returncode == 0, made.stderr
    assert first.read_text() == report_of(shelf / "math")
    with visit(browser, first.as_uri()) as visited:
        page = visited.page
        expect(page.locator("h1")).to_have_text("math")
        expect(page.locator("table.attempts tbody tr")).to_have_count(14)
        page.get_by_text("Report as text").click()
        expect(page.locator(".markdown pre")).to_contain_text("## Leaderboard")
        page.get_by_role("button", name="Open attempt 9").click()
        expect(page.get_by_label("Log of attempt 9")).to_contain_text("step   1")
        assert [each for each in visited.requests if not each.startswith(("file:", "data:"))] == []
        assert not visited.complaints
