"""A realistic study through the real journal: curves that a setting's parameters explain, some failures, promotions."""

import json
import math
import random
from pathlib import Path
from unittest import mock

from openrl.research.evidence import promoted
from openrl.research.journal import Journal
from openrl.research.study import STUDY_FILE, Params, Study, load_study

STUDY = """\
name = "NAME"
command = ["python", "attempt.py"]
metric = "accuracy"
final_metric = "final_accuracy"
seeds = [1, 2, 3]
promote = 2
parallel = 4

[budget]
attempts = ATTEMPTS
gpu_seconds = 9000
tokens = 80_000_000

[space]
learning_rate = {low = 1e-5, high = 1e-3, log = true}
rank = {values = [8, 16, 32, 64]}
group_size = {low = 4, high = 16, step = 4}
temperature = {low = 0.6, high = 1.2}
loss = {values = ["importance_sampling", "ppo", "cispo"]}

[defaults]
learning_rate = 1e-4
rank = 16
group_size = 8
temperature = 1.0
loss = "importance_sampling"

[proposer]
kind = "tpe"
"""
PATCH = """\
diff --git a/attempt.py b/attempt.py
--- a/attempt.py
+++ b/attempt.py
@@ -18,7 +18,9 @@ for step in range(attempt.first_step, 50):
     rewards = [score(answer) for answer in answers]
-    advantages = rewards - mean(rewards)
+    spread = stdev(rewards) or 1.0
+    advantages = [(each - mean(rewards)) / spread for each in rewards]
     train(answers, advantages)
"""
START = 1_760_000_000.0


def write_sample_study(
    directory: Path, num_attempts: int = 36, num_reports: int = 40, *, num_running: int = 2, seed: int = 7
) -> Path:
    """The directory of a study of which the last `num_running` attempts have not ended."""
    directory.mkdir(parents=True, exist_ok=True)
    name = directory.name.lower().replace("_", "-")
    (directory / STUDY_FILE).write_text(STUDY.replace("NAME", name).replace("ATTEMPTS", str(num_attempts + 4)))
    draw = random.Random(seed)
    study = load_study(directory)
    # Nothing here has to survive a crash.
    with mock.patch("openrl.research.journal.os.fsync"), Journal(directory) as journal:
        num_first = max(1, num_attempts - 6)
        for number in range(1, num_attempts + 1):
            if number <= num_first:
                params, attempt_seed, again = (dict(study.defaults) if number == 1 else _params(draw)), 1, False
            else:
                params, attempt_seed, again = *_promotion(study, journal, number - num_first - 1), True
            write_attempt(
                directory, journal, number, params, draw, num_reports, seed=attempt_seed, is_promotion=again,
                is_over=number <= num_attempts - num_running,
            )  # fmt: skip
    return directory


def _promotion(study: Study, journal: Journal, place: int) -> tuple[Params, int]:
    best = promoted(study, [each for each in journal.state.attempts.values() if not each.is_promotion])
    return best[-1 - place // 2 % len(best)].params, study.seeds[1 + place % 2]


def _params(draw: random.Random) -> Params:
    return {
        "learning_rate": 10 ** draw.uniform(-5, -3),
        "rank": draw.choice([8, 16, 32, 64]),
        "group_size": draw.choice([4, 8, 12, 16]),
        "temperature": round(draw.uniform(0.6, 1.2), 3),
        "loss": draw.choice(["importance_sampling", "ppo", "cispo"]),
    }


def write_attempt(
    directory: Path, journal: Journal, number: int, params: Params, draw: random.Random, num_reports: int, *,
    seed: int = 1, is_promotion: bool = False, is_over: bool = True,
) -> None:  # fmt: skip
    """One attempt with its journal lines, its log and, every ninth, a patch."""
    began = START + (number // 4) * 900 + (number % 4) * 20
    journal.append("started", number, params=params, seed=seed, is_promotion=is_promotion, at=began)
    rate, loss = float(params["learning_rate"]), params["loss"]
    quality = 0.86 - 0.17 * (math.log10(rate) + 3.7) ** 2 + 0.015 * (math.log2(float(params["rank"])) - 3)
    quality += {"importance_sampling": 0.0, "ppo": 0.03, "cispo": 0.05}[str(loss)] + draw.gauss(0, 0.012)
    quality -= 0.12 * (float(params["temperature"]) - 0.95) ** 2
    fails, stops = is_over and number % 13 == 5, is_over and quality < 0.72 and not is_promotion and number > 1
    share = 0.5 if fails else 0.33 if stops else 1.0 if is_over else 0.6
    last = int(num_reports * share)
    log: list[str] = [f"attempt {number}: {json.dumps(params)}"]
    for step in range(1, last + 1):
        progress = 1 - math.exp(-3.2 * step / num_reports * min(1.0, rate / 1e-4 + 0.3))
        accuracy = min(1.0, max(0.0, 0.22 + (quality - 0.22) * progress + draw.gauss(0, 0.012)))
        values = {"accuracy": accuracy, "loss": 2.1 * (1 - 0.8 * progress) + draw.gauss(0, 0.03)}
        if step == num_reports:
            values["final_accuracy"] = accuracy - 0.02 + draw.gauss(0, 0.006)
        journal.append("reported", number, step=step, values=values)
        log.append(f"step {step:3d}  accuracy {accuracy:.4f}  loss {values['loss']:.4f}")
    seconds = last * (2.5 + float(params["rank"]) / 24 + float(params["group_size"]) / 8)
    journal.append("metered", number, gpu_seconds=round(seconds, 1), tokens=float(round(seconds * 8200)))
    if fails:
        log.append("tinker.APIStatusError: loss is not finite at step 20")
        reason = "exit status 1: tinker.APIStatusError: loss is not finite at step 20"
        journal.append("ended", number, state="failed", reason=reason, at=began + seconds)
    elif is_over:
        state, reason = ("stopped", "not among the best of its rung") if stops else ("done", "")
        journal.append("ended", number, state=state, reason=reason, at=began + seconds)
    home = directory / "attempts" / f"{number:04d}"
    home.mkdir(parents=True, exist_ok=True)
    (home / "log.txt").write_text("\n".join(log) + "\n")
    if number % 9 == 0:
        (home / "change.patch").write_text(PATCH)
