"""Small data sets in the form of those that the recipes download: folders named like their hub ids."""

import csv
import json
import shutil
import subprocess
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

Row = dict[str, Any]

NUM_ROWS = 96
NUM_DISTILLED = 1024
"""What on-policy distillation has in a batch by default, with four rollouts each."""
SL_BASIC_BATCH = 128
"""Fixed in the recipe."""
PROPHET_FILE = "prophet.csv"
SDFT_DATA = "self-distillation"


def write_offline_data(root: Path, cookbook_python: Path) -> None:
    """Write every data set below `root`; `cookbook_python` has the library that writes Arrow files."""
    for name, splits in _hub_data_sets().items():
        _write_hub_folder(root / name, splits)
    _write_rows(root / "conversations.jsonl", [_chat(f"{i}+1?", f"It is {i + 1}.") for i in range(64)])
    _write_example_data(root / "tinker_cookbook" / "example_data")
    _write_prophet_arena(root / PROPHET_FILE)
    _write_sdft_papers_data(root / SDFT_DATA, cookbook_python)


def _hub_data_sets() -> dict[str, dict[str, list[Row]]]:
    """Splits by `name`, or by `name:configuration` where the recipe names one."""
    problems = [_problem(i % 10, i % 7) for i in range(NUM_ROWS)]
    many_problems = [_problem(i, i % 7) for i in range(NUM_DISTILLED)]
    grade_school = [_word_problem(i % 10, i % 7) for i in range(NUM_ROWS)]
    chats = [_chat(f"Say {i}.", f"I say {i}.") for i in range(NUM_ROWS)]
    many_chats = [_chat(f"Say {i}.", f"I say {i}.") for i in range(4 * SL_BASIC_BATCH)]
    preferences = [_helpful(i) for i in range(NUM_ROWS)]
    return {
        "HuggingFaceH4/no_robots": {"train": many_chats, "test": chats[:8]},
        "openai/gsm8k:main": {"train": grade_school, "test": grade_school[:8]},
        "HuggingFaceH4/MATH-500:default": {"test": problems[:8]},
        "Anthropic/hh-rlhf": {"train": preferences, "test": preferences[:8]},
        "allenai/tulu-3-sft-mixture": {"train": chats},
        "zwhe99/DeepMath-103K": {"train": many_problems},
        "open-thoughts/OpenThoughts3-1.2M": {"train": [_shared(i) for i in range(NUM_ROWS)]},
        "Salesforce/wikitext:wikitext-103-raw-v1": {"train": [{"text": _paragraph(i)} for i in range(400)]},
        "hicai-zju/SciKnowEval": {"test": [_multiple_choice(i) for i in range(NUM_ROWS)]},
        "tangqiaoyu/ToolAlpaca": {
            "train": [{"instruction": f"Call tool {i}.", "output": f"tool({i})"} for i in range(NUM_ROWS)]
        },
        "prometheus-eval/Feedback-Collection": {"train": [_feedback(i) for i in range(NUM_ROWS)]},
    }  # fmt: skip


def _problem(one: int, other: int) -> Row:
    """With the columns of all data sets of problems."""
    question, answer = f"What is {one}+{other}?", str(one + other)
    solution = f"\\boxed{{{answer}}}"
    return {"problem": question, "question": question, "answer": answer, "final_answer": answer, "solution": solution}


def _word_problem(one: int, other: int) -> Row:
    return {
        "question": f"Ann has {one} and {other} pens. How many?",
        "answer": f"{one}+{other}\n#### {one + other}",
    }


def _chat(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _shared(number: int) -> Row:
    turns = [{"from": "human", "value": f"Why {number}?"}, {"from": "gpt", "value": f"<think>Hm.</think>{number}."}]
    return {"conversations": turns}


def _helpful(number: int) -> Row:
    asked = f"\n\nHuman: How far is {number}?\n\nAssistant:"
    return {"chosen": f"{asked} It is {number} miles.", "rejected": f"{asked} Go away."}


def _paragraph(number: int) -> str:
    return f" The light of year {number} went out until after noon , and about half of the water came back . \n"


def _multiple_choice(number: int) -> Row:
    choices = {"text": [str(number + i) for i in range(4)], "label": list("ABCD")}
    return {
        "question": f"Which is {number}?",
        "choices": choices,
        "answerKey": "A",
        "type": "mcq-4-choices",
        "domain": "Chemistry",
        "details": {"level": "L3"},
    }


def _feedback(number: int) -> Row:
    scores = {f"orig_score{i}_description": f"of worth {i}" for i in range(1, 6)}
    return {
        "orig_instruction": f"Write {number}.",
        "orig_criteria": "Is it short?",
        "orig_reference_answer": str(number),
    } | scores


def _write_hub_folder(folder: Path, splits: dict[str, list[Row]]) -> None:
    """One JSON-lines file a split; the front matter of README.md says which is which."""
    name, _, configuration = folder.name.partition(":")
    folder = folder.with_name(name)
    lines = ["---", "configs:", f"- config_name: {configuration or 'default'}", "  data_files:"]
    for split, rows in splits.items():
        _write_rows(folder / f"{split}.jsonl", rows)
        lines += [f"  - split: {split}", f"    path: {split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_example_data(folder: Path) -> None:
    """The files that two recipes look for below the directory in which they are started."""
    folder.mkdir(parents=True)
    (folder / "multilingual.txt").write_text("Guten Tag.\nBonjour.\nGood morning.\nBuenos días.\n")


def _write_prophet_arena(file: Path) -> None:
    """Markets that closed before the recipe's split date, and markets that opened after it."""
    with file.open("w", newline="") as lines:
        rows = csv.DictWriter(lines, [*_market(0, datetime(2025, 1, 1))])
        rows.writeheader()
        for number in range(32):
            is_training = number < 24
            rows.writerow(_market(number, datetime(2025, 9 if is_training else 11, 1)))


def _market(number: int, opened: datetime) -> dict[str, str]:
    market = f"above {number}"
    return {
        "submission_id": f"s{number}",
        "event_ticker": f"E{number}",
        "title": f"Rain {number}",
        "snapshot_time": opened.isoformat(),
        "close_time": (opened + timedelta(days=3)).isoformat(),
        "market_outcome": json.dumps({market: number % 2}),
        "category": "weather",
        "markets": json.dumps([market]),
        "sources": json.dumps([{"title": "News", "summary": f"Clouds {number}.", "ranking": 1}]),
    }


def _write_sdft_papers_data(root: Path, cookbook_python: Path) -> None:
    """Science and tool use as Arrow data sets, each with a part to train on and a part to measure."""
    science = [
        {
            "messages": [{"role": "system", "content": "Choose."}, {"role": "user", "content": f"Which is {i}?"}],
            "output_text": f"<reasoning>It is {i}.</reasoning><answer>A</answer>",
            "prompt": [{"role": "system", "content": "Choose."}, {"role": "user", "content": f"Which is {i}?"}],
            "answer": "A",
        }
        for i in range(16)
    ]
    call = [{"Action": "look", "Action_Input": "{}"}]
    tool_use = [
        {"prompt": f"Use tool {i}.", "golden_response": ["Action: look", "Action Input: {}"], "golden_answer": call}
        for i in range(16)
    ]
    for name, rows in (("science_data", science), ("tooluse_data", tool_use)):
        for part, kept in (("train_data", rows[:12]), ("eval_data", rows[12:])):
            _write_rows(root / name / f"{part}.jsonl", kept)
    convert = (
        "import datasets, pathlib, sys\n"
        "for file in pathlib.Path(sys.argv[1]).rglob('*.jsonl'):\n"
        "    rows = datasets.Dataset.from_json(str(file), cache_dir=sys.argv[1] + '/cache')\n"
        "    rows.save_to_disk(file.with_suffix(''))\n"
    )
    subprocess.run([cookbook_python, "-c", convert, root], check=True)
    shutil.rmtree(root / "cache")
