"""The report's page in Debian's Chromium; under CI or with NATATTN_BROWSER=required it may not be missing."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_results import ARMS, HOSTILE, claims, result

from natattn.reproduce.report import write_report

VERDICTS = {"supported", "refuted", "no effect", "inconclusive"}
READABLE = 4.5  # contrast of text, by WCAG 2


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    required = os.environ.get("CI") or os.environ.get("NATATTN_BROWSER") == "required"
    if chromium is None or chromedriver is None:
        say = pytest.fail if required else pytest.skip
        say("no chromium and chromedriver on the PATH (Debian's packages chromium and chromium-driver)")
    try:
        from selenium import webdriver
    except ImportError:
        if required:
            raise
        pytest.skip("no selenium: pip install -e .[test]")

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                     "--no-first-run", "--window-size=1200,1000", f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # The path of the driver is given, so that selenium looks for none on the network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(browser: Any, make_run: Callable[..., Path], tmp_path: Path) -> Iterator[Any]:
    """The browser with a page open, whose names and numbers mean as much to HTML and scripts as they can."""
    runs = [
        make_run("runs/first", seed=1, label=HOSTILE, config={"optim": {"name": HOSTILE}}),
        make_run("runs/second", seed=2, config={"optim": {"name": "aif"}}, leaky=["natural"]),
    ]
    facts = json.loads((runs[0] / "run.json").read_text())
    runs.append(make_run("runs/third", arms=("natural",), data=facts["data"] | {"fingerprint": "another"}))
    (tmp_path / "runs" / "broken").mkdir()
    write_report(tmp_path / "page #1.html", HOSTILE, [result([*runs, tmp_path / "runs" / "broken"])], claims())
    browser.get_log("browser")  # what an earlier page said
    browser.get((tmp_path / "page #1.html").as_uri())
    yield browser
    assert [line for line in browser.get_log("browser") if line["level"] not in ("INFO", "DEBUG")] == []


def run(browser: Any, script: str, *arguments: Any) -> Any:
    return browser.execute_script(script, *arguments)


def texts(browser: Any, selector: str) -> list[str]:
    found: list[str] = run(
        browser, "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )
    return found


def choose(browser: Any, side: str, name: str) -> None:
    """Choose the run whose label begins so."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    select = Select(browser.find_element(By.ID, f"compare-{side}"))
    select.select_by_index([option.text.startswith(name) for option in select.options].index(True))


def test_what_is_hostile_is_shown_and_not_run(page: Any) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = page.switch_to.alert.text
    assert page.title.startswith("<script>alert(1)</script>")
    assert texts(page, "h1") == [HOSTILE]
    assert run(page, "return document.scripts.length") == 2


def test_nothing_is_asked_of_a_network(page: Any) -> None:
    names = run(page, "return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    found = run(page, "return [...document.querySelectorAll('[src],[href]')].map(e => e.src || e.href)")
    assert {re.split("[:;]", address)[0] for address in found} == {"file", "data"}
    policy = "return fetch('https://example.invalid/').then(() => 'sent', () => 'refused')"
    assert run(page, policy) == "refused"
    refusals = page.get_log("browser")  # which is what was asked for
    assert any("Content Security Policy" in line["message"] for line in refusals)


@pytest.mark.parametrize("column", ["difference", "text"])
def test_a_table_is_sorted_by_its_values(page: Any, column: str) -> None:
    """Also with the keyboard; a true minus is a minus, and what is not known stays last."""
    find = "return [...document.querySelectorAll('th')].find(e => e.textContent === arguments[0])"
    heading = run(page, find, column)
    order = "return [...arguments[0].closest('table').tBodies[0].rows].map(row => row.cells[0].textContent)"
    down, far_down, up, *unknown = ARMS
    heading.click()
    assert run(page, order, heading)[:3] == [far_down, down, up]
    assert set(run(page, order, heading)[3:]) == set(unknown)
    heading.click()
    assert run(page, order, heading)[:3] == [up, down, far_down]
    assert set(run(page, order, heading)[3:]) == set(unknown)
    heading.send_keys(" ")
    assert run(page, order, heading)[:3] == [far_down, down, up]
    assert heading.get_attribute("aria-sort") == "ascending"
    run(page, find, "steps").click()
    assert run(page, order, heading)[:3] == [up, far_down, down]
    assert heading.get_attribute("aria-sort") is None


def test_details_open(page: Any) -> None:
    from selenium.webdriver.common.by import By

    details = page.find_elements(By.TAG_NAME, "details")
    assert len(details) == 3 + 1 + 1  # claims that were measured, a row of many runs, a claim that was not
    for each in details:
        each.find_element(By.TAG_NAME, "summary").click()
        assert each.get_attribute("open") is not None
        assert each.size["height"] > 30
    assert any("a < b" in each.text for each in details)


def test_two_runs_side_by_side(page: Any) -> None:
    choose(page, "first", "first")
    choose(page, "second", "second")
    table = "return [...document.querySelectorAll(arguments[0] + ' tr')].map(r => [...r.cells].map(c => c.innerText))"
    rows = run(page, table, "#compare-finals tbody")
    assert [[row[0].strip(), *row[1:4]] for row in rows] == [
        ["A", "standard", "adamw", "1"],
        ["A", "natural", "aif", "1"],
        ["B", "standard", "adamw", "2"],
        ["B", "natural LEAKY", "aif", "2"],
    ]
    (difference,) = texts(page, "#compare-difference")
    assert "B − A (the last arm of each): 0.01000 nats/token. LEAKY" in difference
    settings = run(page, table.replace("innerText", "textContent"), "#compare-settings")
    assert settings == [["key", "A", "B"], ["optim.name", HOSTILE, "aif"], ["seed", "1", "2"]]
    assert run(page, "return document.querySelectorAll('#compare-curves g.curve').length") == 4
    assert any(re.match(r"second · .*, natural, step 600: 4\.\d+$", text) for text in texts(page, ".point title"))
    inside = """const frame = document.querySelector('#compare-curves').getBoundingClientRect();
      return [...document.querySelectorAll('#compare-curves text')].every(each => { const box =
        each.getBoundingClientRect(); return box.left >= frame.left - 1 && box.right <= frame.right + 1; })"""
    assert run(page, inside)


def test_losses_on_other_data_do_not_compare(page: Any) -> None:
    choose(page, "first", "first")
    choose(page, "second", "third")
    assert texts(page, "#compare-difference") == ["The data are not the same: these losses do not compare."]
    assert run(page, "return document.querySelectorAll('#compare-curves g.curve').length") == 3


def test_a_broken_run_is_named(page: Any) -> None:
    choose(page, "first", "broken")
    choose(page, "second", "broken")
    assert "broken: cannot read run.json" in texts(page, "#compare-finals")[0]
    assert texts(page, "#compare-settings tr") == []
    assert not run(page, "return document.querySelector('#compare-curves').checkVisibility()")


CONTRAST = """
const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const luminance = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => channel(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const back = (element) => { const colour = getComputedStyle(element).backgroundColor;
  return /^rgba.*, 0\\)$/.test(colour) && element.parentElement ? back(element.parentElement) : colour; };
const read = ".badge, .caption, th, dt, .warning li, .leaky, span.first, span.second, label";
return [...document.querySelectorAll(read)].map((element) => {
  const [low, high] = [luminance(getComputedStyle(element).color), luminance(back(element))].sort((a, b) => a - b);
  return [element.className || element.tagName, (high + 0.05) / (low + 0.05)]; });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(page: Any, scheme: str) -> None:
    """The page's own colours have the contrast of text, and each verdict is written out."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    choose(page, "second", "second")  # with a leaky arm
    background = run(page, "return getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    found = run(page, CONTRAST)
    assert [each for each in found if each[1] < READABLE] == []
    assert {"leaky", "badge supported", "badge no-effect"} <= {name for name, _ in found}
    assert {text.split(" ", 1)[1] for text in texts(page, ".badge")} == VERDICTS
