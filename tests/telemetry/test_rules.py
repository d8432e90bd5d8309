import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy/helm/openrl/files"
RUNBOOK = ROOT / "docs/observability.md"


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FILES / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is missing: run scripts/promtool.sh"
    return subprocess.run([program, *arguments], cwd=FILES, capture_output=True, text=True, check=False)


def test_the_alert_rules_do_what_their_tests_say():
    result = promtool("test", "rules", "rules_test.yaml")
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path):
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    panels = [panel for row in dashboard["panels"] for panel in (row, *row.get("panels", []))]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    filled = [query.replace("$__rate_interval", "5m").replace("$__range", "1h") for query in queries]
    recorded = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(filled)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    result = promtool("check", "rules", str(file))
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_tested_and_has_its_place_in_the_runbook():
    tests = yaml.safe_load((FILES / "rules_test.yaml").read_text())["tests"]
    tested = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert {rule["alert"] for rule in rules()} == tested
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert {rule["alert"] for rule in rules()} == set(headings)
    assert {rule["annotations"]["runbook"] for rule in rules()} == {
        f"docs/observability.md#{heading.lower()}" for heading in headings
    }


def test_the_dashboard_has_panels_of_their_own_place_and_a_source_that_can_be_chosen():
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    panels = [panel for row in dashboard["panels"] for panel in (row, *row.get("panels", []))]
    assert len({panel["id"] for panel in panels}) == len(panels)
    charts = [panel for panel in panels if panel["type"] != "row"]
    assert all(panel["datasource"]["uid"] == "${source}" for panel in charts)
    assert all(target["expr"] for panel in charts for target in panel["targets"])
    titles = {panel["title"] for panel in panels if panel["type"] == "row"}
    assert {"Overview", "Device time by job", "Queue", "Sampling", "HTTP and store", "Tenant", "DCGM"} <= titles
