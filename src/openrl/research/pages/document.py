"""A study's report as one HTML file that needs nothing beside it."""

import html
from pathlib import Path

from openrl.research.journal import StudyState
from openrl.research.pages.assets import content_hash, joined_script, read_asset
from openrl.research.pages.attempt_files import attempt_files
from openrl.research.pages.library import as_json, importances
from openrl.research.pages.view import attempt_view, findings_view, study_view
from openrl.research.report import markdown_report
from openrl.research.study import Study

_LOG_BYTES = 8 * 1024  # of every attempt: a thousand make 8 MB


def html_report(directory: Path, study: Study, state: StudyState, gpu_hour_price: float | None = None) -> str:
    """The page with its data inside; the same files in the directory give the same text."""
    is_running = any(each.state == "running" for each in state.attempts.values())
    data = {
        "study": study_view(study, state, is_running=is_running, gpu_hour_price=gpu_hour_price),
        "attempts": [attempt_view(study, each) for _, each in sorted(state.attempts.items())],
        "findings": findings_view(study, state, importances(study, state)),
        "files": {number: attempt_files(directory, number, _LOG_BYTES) for number in sorted(state.attempts)},
        "markdown": markdown_report(study, state),
    }
    # Within a script element only "<" could end the text.
    content = as_json(data).replace("<", "\\u003c")
    style, script = read_asset("page.css"), joined_script()
    policy = f"default-src 'none'; script-src {content_hash(script)}; style-src {content_hash(style)}; img-src data:"
    return (
        read_asset("index.html")
        .replace("<title>Studies</title>", f"<title>{html.escape(study.name)}</title>")
        .replace("<!-- policy -->", f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
        .replace('<link rel="stylesheet" href="static/page.css">', f"<style>{style}</style>")
        .replace(
            '<script type="module" src="static/main.js"></script>',
            f'<script type="application/json" id="data">{content}</script>\n<script type="module">{script}</script>',
        )
    )
