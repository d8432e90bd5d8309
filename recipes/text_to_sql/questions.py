"""Writes questions about a schema, each with the query that answers it."""

import random
from dataclasses import dataclass

from .databases import NUM_VARIANTS
from .grader import Task
from .queries import QueryError, run_query
from .schemas import HELD_OUT_SCHEMAS, TRAIN_SCHEMAS, Schema, Table
from .templates import HELD_OUT_WORDING, TEMPLATES, Template

AGGREGATES = (("average", "AVG"), ("highest", "MAX"), ("lowest", "MIN"), ("total", "SUM"))
MAX_TRIES = 50


@dataclass(frozen=True, slots=True)
class Question:
    """A question in words, and its task."""

    task: Task
    level: int
    template: str
    wording: int
    text: str

    @property
    def prompt(self) -> str:
        """What the model continues. Plain text: the turn tokens of a pretrained model are untrained."""
        return f"{self.task.schema.ddl()}\nQ: {self.text}\nSELECT"

    @property
    def completion(self) -> str:
        """The gold answer as the model should write it."""
        return self.task.gold_sql.removeprefix("SELECT") + ";"


@dataclass(frozen=True, slots=True)
class Split:
    """Questions to train on, and questions whose schemas and wordings training never shows."""

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]


def make_split(num_train: int, num_held_out: int, max_level: int, seed: int) -> Split:
    """The same questions for the same arguments; templates occur about equally often, schemas too.

    The held-out questions do not depend on the seed, so that runs with different seeds compare.
    """
    train_wordings = tuple(range(HELD_OUT_WORDING))
    return Split(
        train=_questions(TRAIN_SCHEMAS, train_wordings, num_train, max_level, random.Random(f"train/{seed}")),
        held_out=_questions(HELD_OUT_SCHEMAS, (HELD_OUT_WORDING,), num_held_out, max_level, random.Random("held-out")),
    )


def query_of(completion: str) -> str:
    """The query in what the model wrote after the prompt: up to the first ';' or line end."""
    return "SELECT" + completion.split(";")[0].split("\n")[0]


def _questions(
    schemas: tuple[Schema, ...], wordings: tuple[int, ...], count: int, max_level: int, rng: random.Random
) -> tuple[Question, ...]:
    templates = [template for template in TEMPLATES if template.level <= max_level]
    found, seen = list[Question](), set[str]()
    pairs: list[tuple[Template, Schema]] = []
    for _ in range(count * MAX_TRIES):
        if len(found) == count:
            break
        if not pairs:
            pairs = [(template, schema) for template in templates for schema in schemas]
            pairs = _interleaved(pairs, len(templates), rng)
        template, schema = pairs.pop()
        question = _question(template, schema, rng.choice(wordings), rng)
        if question is not None and question.prompt not in seen:
            found.append(question)
            seen.add(question.prompt)
    if len(found) < count:
        raise ValueError(f"{count} different questions were asked for, {len(found)} exist")
    return tuple(found)


def _interleaved(
    pairs: list[tuple[Template, Schema]], num_templates: int, rng: random.Random
) -> list[tuple[Template, Schema]]:
    """Shuffled so that any few neighbours show many templates."""
    by_template: dict[str, list[tuple[Template, Schema]]] = {}
    for pair in rng.sample(pairs, len(pairs)):
        by_template.setdefault(pair[0].name, []).append(pair)
    rounds = zip(*by_template.values(), strict=True)
    return [pair for each in rounds for pair in rng.sample(each, num_templates)]


def _question(template: Template, schema: Schema, wording: int, rng: random.Random) -> Question | None:
    """None if no try gives an answer that differs between the variants: such answers prove nothing."""
    for _ in range(MAX_TRIES):
        slots = _slots(schema, rng)
        task = Task(schema, template.sql.format_map(slots))
        if _discriminates(task):
            return Question(task, template.level, template.name, wording, template.wordings[wording].format_map(slots))
    return None


def _discriminates(task: Task) -> bool:
    try:
        answers = [run_query(task.schema, variant, task.gold_sql) for variant in range(NUM_VARIANTS)]
    except QueryError as error:
        raise ValueError(f"the gold query {task.gold_sql!r} is not valid: {error}") from error
    is_empty = any(not rows or rows == [(0,)] or rows == [(None,)] for rows in answers)
    return not is_empty and all(answers[0] != other for other in answers[1:])


def _slots(schema: Schema, rng: random.Random) -> dict[str, str]:
    """What the templates may name: a table of the schema, and both of them for joins."""
    table = rng.choice((schema.parent, schema.child))
    agg_word, agg = rng.choice(AGGREGATES)
    joined = {f"p_{slot}": text for slot, text in _table_slots(schema.parent, rng).items()}
    joined |= {f"c_{slot}": text for slot, text in _table_slots(schema.child, rng).items()}
    return _table_slots(table, rng) | joined | {"fk": schema.foreign_key, "agg_word": agg_word, "agg": agg}


def _table_slots(table: Table, rng: random.Random) -> dict[str, str]:
    category = rng.choice(list(table.categories))
    number = rng.choice(list(table.numbers))
    low, high = table.numbers[number]
    return {
        "table": table.name,
        "rows": table.plural,
        "label": table.label,
        "cat": category,
        "value": rng.choice(table.categories[category]),
        "num": number,
        "n": str(rng.randint(low + (high - low) // 4, high - (high - low) // 4)),
        "few": str(rng.randint(2, 9)),
        "k": str(rng.choice((2, 3, 4, 5))),
    }
