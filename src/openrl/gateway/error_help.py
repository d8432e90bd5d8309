"""What each error code means and what to do: served at /docs/errors, and written to docs/errors.md."""

from collections.abc import Mapping
from html import escape

from openrl.errors import ErrorCode

PAGE_PATH = "/docs/errors"

HELP: Mapping[ErrorCode, str] = {
    "invalid_request": "The request cannot be done as it stands; `detail` says why.",
    "malformed": "A body, header, path or name could not be read. `detail` names the place, and what stood there.",
    "missing": "Something is absent that this request needs: a field, an input of the loss, a file of a checkpoint.",
    "unknown_name": "A loss, setting, input or kind that does not exist; `detail` lists those that do.",
    "not_supported": "A valid request of the API that this server does not do; `bound` says what it does.",
    "out_of_range": "A number is outside its bounds; `value` and `bound` name both.",
    "not_finite": "A number is NaN or infinite, or below its least value. Inputs are never repaired: "
    "find out where it comes from.",
    "outside_vocabulary": "A token id is outside the base model's vocabulary: usually another model's tokenizer.",
    "context_exceeded": "Prompt and answer, or a datum, are longer than the base model's context; shorten them.",
    "wrong_dtype": "A tensor or setting has the wrong type of numbers.",
    "wrong_shape": "Lengths or shapes disagree: per-token inputs have one entry, or row, for each token of the datum.",
    "wrong_kind": "A checkpoint, request or base model of another kind: samples are drawn from `sampler_weights`, "
    "training continues from `weights`.",
    "name_taken": "A checkpoint of that kind has the name already: choose another, delete it, or save with overwrite.",
    "too_large": "A body or field is larger than this server accepts; `bound` is in bytes. Send fewer datums at once.",
    "too_slow": "A request came more slowly than this server waits for it; `gateway.head_timeout_s` and "
    "`gateway.min_body_rate` say how fast it must be.",
    "unauthorized": "No API key, or one that is unknown, revoked or expired. `openrl keys` makes keys.",
    "forbidden": "The credential is valid, but its role or its project does not allow this; `bound` says what does. "
    "An admin of the tenant changes roles and makes keys.",
    "not_found": "It does not exist, or belongs to another tenant: the two are not told apart.",
    "slow_down": "Allowed, but not now: a limit of rate or number is reached. Clients wait and repeat.",
    "quota_reached": "The tenant or project has as much as its quota allows; `detail` names the quota and what is in "
    "use. Delete checkpoints, close runs, or have the quota raised: waiting does not help.",
    "session_ended": "The session was finished by its client, or expired because nothing was heard of it. "
    "Make a new one; saved checkpoints remain.",
    "expired": "A link or a result was kept for a while only, and that is over. Ask for a new link; a lost sample is "
    "drawn again.",
    "not_ready": "A long poll ended before the result was there: ask again. Clients do so by themselves.",
    "unavailable": "The server cannot do it at the moment: it starts, stops, or its disk or database does not answer.",
    "request_failed": "An accepted request ran and failed: the error is the result of its future.",
    "internal": "A fault of the server. Its log has the trace; please report it.",
}


def link(base_url: str, code: ErrorCode) -> str:
    """Where the code is explained, on this very server; `base_url` ends with "/"."""
    return f"{base_url}{PAGE_PATH[1:]}#{code}"


def markdown_page() -> str:
    """The content of docs/errors.md."""
    rows = "\n".join(f'| <a id="{code}"></a>`{code}` | {text} |' for code, text in HELP.items())
    return f"""# Errors

Every refusal has the same JSON body:

```json
{{"detail": "top_p is 1.5; it must be between 0 and 1", "code": "out_of_range", "value": 1.5,
  "bound": "between 0 and 1", "docs": "http://127.0.0.1:8000/docs/errors#out_of_range"}}
```

`detail` is for people and may change; `code` is stable. `value` and `bound` are there where one value is to blame. A
request that was accepted and failed later is not an HTTP error: its future's result is
`{{"error": ..., "category": "user" | "server"}}`.

| code | what it means, what to do |
|---|---|
{rows}

This page is also served by every server, at `{PAGE_PATH}`.
"""


def html_page() -> str:
    """The same for a browser that follows `docs`."""
    entries = "".join(f'<dt id="{code}"><code>{code}</code></dt><dd>{_html(text)}</dd>' for code, text in HELP.items())
    style = "body{font:16px/1.5 system-ui;max-width:46rem;margin:2rem auto;padding:0 1rem}dt:target{background:#fe9}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>OpenRL: errors</title>'
        f"<style>{style}dd{{margin:0 0 1rem}}</style><h1>Errors</h1><dl>{entries}</dl></html>"
    )


def _html(text: str) -> str:
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
