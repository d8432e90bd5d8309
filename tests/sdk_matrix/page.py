"""Writes docs/sdk-versions.md from what the matrix test saw: `python -m tests.sdk_matrix.page`."""

import json
from collections.abc import Sequence
from typing import Any

from tests.sdk_matrix.comparison import Steps, faults, is_own_fault, unequal
from tests.sdk_matrix.venvs import RESULTS, ROOT, known_versions, newest_version

GROUPS: dict[str, tuple[str, ...]] = {
    "training": (
        "capabilities", "create", "forward", "forward_backward", "several_chunks", "several_chunks_forward",
        "policy_losses", "matrix_targets", "refused_request",
    ),
    "save, resume": ("save_state", "resume", "resume_by_create_model", "load_state"),
    "sampling": ("sample_base_model", "sample_saved_weights", "sample_snapshot", "many_samples", "compute_logprobs"),
    "REST": ("list_runs", "list_checkpoints", "weights_info", "sessions", "publish", "ttl", "copy_weights", "delete"),
    "archive": ("archive", "cli_download", "cli_push_hf"),
    "external weights": ("external_weights", "encrypted_weights", "cli_external_download", "cli_external_push_hf"),
    "CLI lists": ("cli_lists",),
    "finish": ("finish",),
}  # fmt: skip
HEAD = """# SDK versions

Each version runs the same script in a virtual environment of its own against the same server (`make test-sdk-matrix`,
which writes this page): capabilities, a LoRA run, `forward`, `forward_backward` in one and in several chunks, three
losses, a refused request, `optim_step`, saving, resuming in every way the version has, sampling from the base model,
from saved weights and from a snapshot, prompt log-probabilities, listings, publication, expiry, copies, deletion,
the adapter as an archive or as external weights, plain and encrypted, and the version's own command line.

**equal** means that every number (losses, log-probabilities, gradient norms, sampled tokens, digests of 1,100 datums'
outputs and of archive files) is bit-equal to that of {reference}, or of the last version that has the step, with the
same seeds. *–* means that the version has no such method.
"""
NOTES = """
## How the server speaks to them

* `forward` is sent as JSON up to 0.20, `forward_backward` up to 0.18.2; the server queues the protobuf body that stands
  for the same request, so the worker sees no difference. 0.18.0 reads results as JSON too and gets them so,
  because its `Accept` names nothing else; every other client gets protobuf.
* 0.20 to 0.24 send protobuf because `client/config` sets `proto_write_fwdbwd` and, from 0.22 on, `fwd_via_fwdbwd`.
* Up to 0.22, resuming is `weights_info`, `create_model`, `load_weights` with `seq_id` 1. From 0.24 on it is a single
  `load_weights`, because `client/config` sets `create_model_via_load_weights`; the test drives the older way there as
  well.
* The archive (`…/archive`: a redirect to a signed link, a tar with `adapter_config.json`, `adapter_model.safetensors`
  and `checkpoint_complete`) was called up to 0.35. External weights, a link for each file, are in the SDK from 0.28 on,
  with encryption to age recipients from 0.33 on; the command line downloads them, by a temporary export, from 0.36 on.

## Exceptions

* `tinker checkpoint push-hf` of 0.18 and 0.20 fails by itself, whatever the server: where it means the built-in
  `list`, it calls its own command `list`. Its check of the archive comes before and passes. Later versions upload the
  adapter to a stand-in for the hub.
* Sessions are finished by `close()` from 0.27 on; older clients just stop their heartbeats.
* `forward_backward_custom` and `get_tokenizer` are not in the script: they need torch and transformers, and no
  endpoint of their own.
* A version newer than the last one here is tried too. If it fails, the test says what it asks of a server that the
  last one did not: endpoints, methods, `client/config` flags, fields of types and messages.
"""


def cell(version: str, seen: Steps, reference: Steps, names: Sequence[str]) -> str:
    """One group of steps in a word."""
    done = {name: seen[name] for name in names if name in seen}
    wrong = faults(done)
    if any(not is_own_fault(version, name, error) for name, error in wrong.items()):
        return f"**fails**: {', '.join(wrong)}"
    if unequal(done, reference):
        return f"**differs**: {', '.join(unequal(done, reference))}"
    if wrong:
        return f"equal, but {', '.join(wrong)}"
    return "equal" if done else "–"


def row(seen: dict[str, Any], reference: Steps) -> str:
    traits, version = seen["traits"], seen["version"]
    bodies = sorted({traits["forward"], traits["forward_backward"]})
    cells = [cell(version, seen["steps"], reference, names) for names in GROUPS.values()]
    return " | ".join(["", version, ", ".join(bodies), traits["results"], traits["resume"], *cells, ""]).strip()


def page() -> str:
    versions = known_versions()
    newest = newest_version()
    if newest not in versions and (RESULTS / f"{newest}.json").exists():
        versions.append(newest)
    results = [json.loads((RESULTS / f"{version}.json").read_text()) for version in versions]
    reference: Steps = {}
    for seen in results[: len(known_versions())]:
        reference |= {name: step for name, step in seen["steps"].items() if name not in faults(seen["steps"])}
    columns = ["version", "passes sent as", "results as", "resumes by", *GROUPS]
    table = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    table += [row(seen, reference) for seen in results]
    has_failed = "" if newest in versions else " It did not get to its end; the test says why."
    return (
        HEAD.format(reference=known_versions()[-1])
        + "\n"
        + "\n".join(table)
        + f"\n\nNewest on PyPI when this was written: {newest}.{has_failed}\n"
        + NOTES
    )


if __name__ == "__main__":
    (ROOT / "docs" / "sdk-versions.md").write_text(page())
