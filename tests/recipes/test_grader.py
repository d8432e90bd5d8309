from collections.abc import Iterator

import pytest

from recipes.text_to_sql.databases import NUM_VARIANTS, create_database
from recipes.text_to_sql.grader import Grade, Grader, Task
from recipes.text_to_sql.queries import MAX_ROWS, QueryError, run_query
from recipes.text_to_sql.schemas import TRAIN_SCHEMAS, Schema

MUSIC: Schema = TRAIN_SCHEMAS[0]  # singer(id, name, country, age), album(id, singer_id, title, genre, price)

HOSTILE = (
    "ATTACH DATABASE '/tmp/stolen.db' AS stolen",
    "PRAGMA query_only = OFF",
    "PRAGMA table_info(singer)",
    "SELECT * FROM pragma_table_info('singer')",
    "DROP TABLE singer",
    "DELETE FROM singer",
    "UPDATE singer SET age = 1",
    "INSERT INTO singer VALUES (99, 'x', 'y', 1)",
    "CREATE TABLE mine (a)",
    "VACUUM INTO '/tmp/stolen.db'",
    "SELECT load_extension('/tmp/evil.so')",
    "SELECT 1; DROP TABLE singer",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT COUNT(*) FROM t",
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t",
    "SELECT COUNT(*) FROM album a, album b, album c, album d, album e, album f, album g",
    "SELECT a.id FROM album a, album b",
    "SELECT zeroblob(1000000000)",
    "SELECT hex(randomblob(100000000))",
    "SELECT printf('%.1000000000c', 'x')",
    "SELECT replace(hex(zeroblob(10000)), '0', hex(zeroblob(10000)))",
    "BEGIN EXCLUSIVE",
    "EXPLAIN DELETE FROM singer",
    "SELECT" + " (SELECT" * 2000,
    "SELECT " + "1+" * 20_000 + "1",
    "",
    ";",
    "-- nothing",
    "SELECT '\x00'\x00",
    "SELECT \ud800",
)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as grader:
        yield grader


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM singer WHERE age > 40",
        "select name from singer where 40 < age",
        "SELECT singer.name FROM singer WHERE NOT age <= 40 ORDER BY age",
        "SELECT name FROM (SELECT * FROM singer) WHERE age >= 41",
    ],
)
def test_queries_that_return_the_same_rows_are_correct(grader: Grader, sql: str):
    assert grader.grade(Task(MUSIC, "SELECT name FROM singer WHERE age > 40"), sql) is Grade.CORRECT


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM singer",
        "SELECT name, age FROM singer WHERE age > 40",
        "SELECT name FROM singer WHERE age > 40 LIMIT 1",
        "SELECT name FROM singer WHERE age > 40 UNION ALL SELECT name FROM singer WHERE age > 40",
        "SELECT COUNT(*) FROM singer WHERE age > 40",
        "SELECT 1",
    ],
)
def test_queries_that_return_other_rows_are_wrong(grader: Grader, sql: str):
    assert grader.grade(Task(MUSIC, "SELECT name FROM singer WHERE age > 40"), sql) is Grade.WRONG


@pytest.mark.parametrize("sql", ["SELECT nmae FROM singer", "SELECT name FROM singers", "SELECT", "name FROM singer"])
def test_queries_that_do_not_run_have_failed(grader: Grader, sql: str):
    assert grader.grade(Task(MUSIC, "SELECT name FROM singer"), sql) is Grade.FAILED


def test_the_order_of_rows_counts_only_where_the_gold_query_orders_them(grader: Grader):
    backwards = "SELECT name FROM singer ORDER BY age DESC"
    assert grader.grade(Task(MUSIC, "SELECT name FROM singer"), backwards) is Grade.CORRECT
    assert grader.grade(Task(MUSIC, "SELECT name FROM singer ORDER BY age"), backwards) is Grade.WRONG


def test_numbers_that_are_equal_up_to_rounding_are_one_answer(grader: Grader):
    task = Task(MUSIC, "SELECT AVG(price) FROM album")
    assert grader.grade(task, "SELECT SUM(price) / (COUNT(*) + 0.0) FROM album") is Grade.CORRECT
    assert grader.grade(task, "SELECT AVG(price) + 0.01 FROM album") is Grade.WRONG


def test_an_answer_that_is_right_on_one_variant_by_luck_is_wrong(grader: Grader):
    gold = Task(MUSIC, "SELECT COUNT(*) FROM album WHERE genre = 'rock'")
    counts = [run_query(MUSIC, variant, gold.gold_sql)[0][0] for variant in range(NUM_VARIANTS)]
    assert len(set(counts)) == NUM_VARIANTS
    assert grader.grade(gold, f"SELECT {counts[0]}") is Grade.WRONG


@pytest.mark.parametrize("sql", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.timeout(20)
def test_a_hostile_query_fails_within_its_limits(grader: Grader, sql: str):
    assert grader.grade(Task(MUSIC, "SELECT name FROM singer"), sql) is Grade.FAILED


def test_queries_harm_no_database_even_outside_the_sandbox():
    before = run_query(MUSIC, 0, "SELECT * FROM singer")
    for sql in HOSTILE:
        with pytest.raises(QueryError):
            run_query(MUSIC, 0, sql)
    assert run_query(MUSIC, 0, "SELECT * FROM singer") == before
    assert run_query(MUSIC, 0, "SELECT name FROM sqlite_master ORDER BY name") == [("album",), ("singer",)]


def test_more_rows_than_the_limit_are_refused():
    numbers = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t LIMIT {})  SELECT n FROM t"
    assert len(run_query(MUSIC, 0, numbers.format(MAX_ROWS))) == MAX_ROWS
    with pytest.raises(QueryError, match="more than"):
        run_query(MUSIC, 0, numbers.format(MAX_ROWS + 1))


def test_a_database_has_the_same_rows_each_time_it_is_made():
    first, second = create_database(MUSIC, 0), create_database(MUSIC, 0)
    other = create_database(MUSIC, 1)
    query = "SELECT * FROM album ORDER BY id"
    assert first.execute(query).fetchall() == second.execute(query).fetchall()
    assert first.execute(query).fetchall() != other.execute(query).fetchall()
    for database in (first, second, other):
        database.close()
