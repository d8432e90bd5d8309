"""The kinds of questions: each with several wordings and one query."""

from dataclasses import dataclass

HELD_OUT_WORDING = 3
"""Index of the wording that only held-out questions use."""

JOINED = "{c_table} JOIN {p_table} ON {c_table}.{fk} = {p_table}.id"


@dataclass(frozen=True, slots=True)
class Template:
    """One kind of question; `{slots}` are filled from a schema (questions.py)."""

    name: str
    level: int  # 1 filter, 2 aggregate, 3 group and order, 4 join
    wordings: tuple[str, str, str, str]
    sql: str


TEMPLATES: tuple[Template, ...] = (
    Template(
        "list",
        1,
        (
            "List the {label} of all {rows}.",
            "Show every {table} {label}.",
            "What are the {label}s of the {rows}?",
            "Give me the {label} of each {table}.",
        ),
        "SELECT {label} FROM {table}",
    ),
    Template(
        "equal",
        1,
        (
            "List the {label} of {rows} with {cat} {value}.",
            "Which {rows} have {cat} {value}? Show the {label}.",
            "Show the {label} of every {table} whose {cat} is {value}.",
            "Find the {label} of all {rows} where the {cat} is {value}.",
        ),
        "SELECT {label} FROM {table} WHERE {cat} = '{value}'",
    ),
    Template(
        "above",
        1,
        (
            "List the {label} of {rows} with {num} above {n}.",
            "Which {rows} have {num} greater than {n}? Show the {label}.",
            "Show the {label} of every {table} whose {num} is over {n}.",
            "Find the {label} of all {rows} where the {num} is more than {n}.",
        ),
        "SELECT {label} FROM {table} WHERE {num} > {n}",
    ),
    Template(
        "below",
        1,
        (
            "List the {label} of {rows} with {num} below {n}.",
            "Which {rows} have {num} smaller than {n}? Show the {label}.",
            "Show the {label} of every {table} whose {num} is under {n}.",
            "Find the {label} of all {rows} where the {num} is less than {n}.",
        ),
        "SELECT {label} FROM {table} WHERE {num} < {n}",
    ),
    Template(
        "not_equal",
        1,
        (
            "List the {label} of {rows} whose {cat} is not {value}.",
            "Show the {label} of {rows} except those with {cat} {value}.",
            "Which {rows} do not have {cat} {value}? Show the {label}.",
            "Find the {label} of all {rows} with a {cat} other than {value}.",
        ),
        "SELECT {label} FROM {table} WHERE {cat} != '{value}'",
    ),
    Template(
        "equal_and_above",
        1,
        (
            "List the {label} of {rows} with {cat} {value} and {num} above {n}.",
            "Which {rows} have {cat} {value} and {num} greater than {n}? Show the {label}.",
            "Show the {label} of every {table} whose {cat} is {value} and whose {num} is over {n}.",
            "Find the {label} of all {rows} where the {cat} is {value} and the {num} is more than {n}.",
        ),
        "SELECT {label} FROM {table} WHERE {cat} = '{value}' AND {num} > {n}",
    ),
    Template(
        "count_equal",
        2,
        (
            "How many {rows} have {cat} {value}?",
            "Count the {rows} with {cat} {value}.",
            "What is the number of {rows} whose {cat} is {value}?",
            "Tell me how many {rows} there are where the {cat} is {value}.",
        ),
        "SELECT COUNT(*) FROM {table} WHERE {cat} = '{value}'",
    ),
    Template(
        "count_above",
        2,
        (
            "How many {rows} have {num} above {n}?",
            "Count the {rows} with {num} greater than {n}.",
            "What is the number of {rows} whose {num} is over {n}?",
            "Tell me how many {rows} there are where the {num} is more than {n}.",
        ),
        "SELECT COUNT(*) FROM {table} WHERE {num} > {n}",
    ),
    Template(
        "aggregate",
        2,
        (
            "What is the {agg_word} {num} of the {rows}?",
            "Find the {agg_word} {num} of all {rows}.",
            "Show the {agg_word} {table} {num}.",
            "Compute the {agg_word} {num} over the {rows}.",
        ),
        "SELECT {agg}({num}) FROM {table}",
    ),
    Template(
        "aggregate_equal",
        2,
        (
            "What is the {agg_word} {num} of {rows} with {cat} {value}?",
            "Find the {agg_word} {num} of the {rows} whose {cat} is {value}.",
            "For {rows} with {cat} {value}, show the {agg_word} {num}.",
            "Compute the {agg_word} {num} over the {rows} where the {cat} is {value}.",
        ),
        "SELECT {agg}({num}) FROM {table} WHERE {cat} = '{value}'",
    ),
    Template(
        "count_per",
        3,
        (
            "How many {rows} are there per {cat}?",
            "For each {cat}, count the {rows}.",
            "Show each {cat} with its number of {rows}.",
            "Give every {cat} and how many {rows} it has.",
        ),
        "SELECT {cat}, COUNT(*) FROM {table} GROUP BY {cat}",
    ),
    Template(
        "aggregate_per",
        3,
        (
            "What is the {agg_word} {num} of {rows} per {cat}?",
            "For each {cat}, find the {agg_word} {num} of the {rows}.",
            "Show each {cat} with the {agg_word} {num} of its {rows}.",
            "Give every {cat} and the {agg_word} {num} of the {rows} in it.",
        ),
        "SELECT {cat}, {agg}({num}) FROM {table} GROUP BY {cat}",
    ),
    Template(
        "highest",
        3,
        (
            "Which {table} has the highest {num}? Show the {label}.",
            "Show the {label} of the {table} with the largest {num}.",
            "What is the {label} of the {table} with the most {num}?",
            "Find the {label} of the {table} whose {num} is the greatest.",
        ),
        "SELECT {label} FROM {table} ORDER BY {num} DESC LIMIT 1",
    ),
    Template(
        "lowest",
        3,
        (
            "Which {table} has the lowest {num}? Show the {label}.",
            "Show the {label} of the {table} with the smallest {num}.",
            "What is the {label} of the {table} with the least {num}?",
            "Find the {label} of the {table} whose {num} is the minimum.",
        ),
        "SELECT {label} FROM {table} ORDER BY {num} LIMIT 1",
    ),
    Template(
        "top",
        3,
        (
            "List the {label} of the {k} {rows} with the highest {num}.",
            "Show the top {k} {rows} by {num}, {label} only.",
            "Which {k} {rows} have the largest {num}? Show the {label}.",
            "Find the {label} of the {k} {rows} whose {num} is the greatest.",
        ),
        "SELECT {label} FROM {table} ORDER BY {num} DESC LIMIT {k}",
    ),
    Template(
        "sorted",
        3,
        (
            "List the {label} of all {rows} sorted by {num}.",
            "Show every {table} {label} ordered by {num}.",
            "What are the {label}s of the {rows}, from lowest to highest {num}?",
            "Give me the {label} of each {table} in order of {num}.",
        ),
        "SELECT {label} FROM {table} ORDER BY {num}",
    ),
    Template(
        "frequent",
        3,
        (
            "Which {cat} values have more than {few} {rows}?",
            "List each {cat} with over {few} {rows}.",
            "Show the {cat} of groups with more than {few} {rows}.",
            "Find every {cat} that more than {few} {rows} share.",
        ),
        "SELECT {cat} FROM {table} GROUP BY {cat} HAVING COUNT(*) > {few}",
    ),
    Template(
        "both_labels",
        4,
        (
            "List the {c_label} of each {c_table} with the {p_label} of its {p_table}.",
            "Show every {c_table} {c_label} and its {p_table} {p_label}.",
            "What are the {c_label} and the {p_table} {p_label} of all {c_rows}?",
            "Give me each {c_table}'s {c_label} together with its {p_table}'s {p_label}.",
        ),
        f"SELECT {{c_table}}.{{c_label}}, {{p_table}}.{{p_label}} FROM {JOINED}",
    ),
    Template(
        "by_parent",
        4,
        (
            "List the {c_label} of {c_rows} whose {p_table} has {p_cat} {p_value}.",
            "Which {c_rows} belong to a {p_table} with {p_cat} {p_value}? Show the {c_label}.",
            "Show the {c_label} of every {c_table} of a {p_table} with {p_cat} {p_value}.",
            "Find the {c_label} of all {c_rows} where the {p_table}'s {p_cat} is {p_value}.",
        ),
        f"SELECT {{c_table}}.{{c_label}} FROM {JOINED} WHERE {{p_table}}.{{p_cat}} = '{{p_value}}'",
    ),
    Template(
        "count_by_parent",
        4,
        (
            "How many {c_rows} does each {p_table} have? Show the {p_label} and the count.",
            "Count the {c_rows} of each {p_table} that has any, with its {p_label}.",
            "For each {p_table} with {c_rows}, show its {p_label} and their number.",
            "Give every {p_table}'s {p_label} and how many {c_rows} belong to it.",
        ),
        f"SELECT {{p_table}}.{{p_label}}, COUNT(*) FROM {JOINED} GROUP BY {{p_table}}.id",
    ),
)
