from recipes.text_to_sql.grader import Grade, Grader
from recipes.text_to_sql.questions import Question, make_split, query_of
from recipes.text_to_sql.schemas import HELD_OUT_SCHEMAS, TRAIN_SCHEMAS, Schema
from recipes.text_to_sql.templates import HELD_OUT_WORDING, TEMPLATES


def texts(questions: tuple[Question, ...]) -> list[tuple[str, str]]:
    return [(question.prompt, question.completion) for question in questions]


def test_the_same_seed_gives_the_same_questions():
    first, second = make_split(120, 40, max_level=4, seed=3), make_split(120, 40, max_level=4, seed=3)
    assert texts(first.train) == texts(second.train)
    assert texts(first.held_out) == texts(second.held_out)


def test_another_seed_gives_other_training_questions_and_the_same_held_out_ones():
    first, second = make_split(120, 40, max_level=4, seed=0), make_split(120, 40, max_level=4, seed=1)
    assert texts(first.train) != texts(second.train)
    assert texts(first.held_out) == texts(second.held_out)


def test_held_out_questions_share_no_schema_and_no_wording_with_training():
    split = make_split(600, 100, max_level=4, seed=0)
    trained_schemas = {question.task.schema.name for question in split.train}
    assert trained_schemas.isdisjoint(question.task.schema.name for question in split.held_out)
    assert {question.wording for question in split.train} == set(range(HELD_OUT_WORDING))
    assert {question.wording for question in split.held_out} == {HELD_OUT_WORDING}


def test_no_table_of_a_held_out_schema_occurs_in_a_training_schema():
    def tables(schemas: tuple[Schema, ...]) -> set[str]:
        return {table.name for schema in schemas for table in (schema.parent, schema.child)}

    assert tables(TRAIN_SCHEMAS).isdisjoint(tables(HELD_OUT_SCHEMAS))


def test_the_held_out_wording_of_a_template_differs_from_the_others():
    for template in TEMPLATES:
        assert template.wordings[HELD_OUT_WORDING] not in template.wordings[:HELD_OUT_WORDING]


def test_no_question_is_asked_twice():
    split = make_split(600, 100, max_level=4, seed=0)
    prompts = [question.prompt for question in split.train + split.held_out]
    assert len(set(prompts)) == len(prompts)


def test_every_template_occurs_and_levels_stop_where_asked():
    everything, easy = make_split(200, 60, max_level=4, seed=0), make_split(50, 20, max_level=2, seed=0)
    assert {question.template for question in everything.train} == {template.name for template in TEMPLATES}
    assert {question.template for question in everything.held_out} == {template.name for template in TEMPLATES}
    assert max(question.level for question in easy.train + easy.held_out) == 2


def test_the_gold_query_of_every_question_is_graded_correct():
    split, grader = make_split(300, 80, max_level=4, seed=5), Grader()
    for question in split.train + split.held_out:
        query = query_of(question.completion + " and more text")
        assert query == question.task.gold_sql
        assert grader.grade(question.task, query) is Grade.CORRECT
    grader.close()


def test_answers_of_other_questions_do_not_pass():
    split, grader = make_split(150, 20, max_level=4, seed=0), Grader()
    pairs = [
        (asked, other)
        for asked in split.train
        for other in split.train
        if other.task.schema is asked.task.schema and other.task.gold_sql != asked.task.gold_sql
    ]
    passed = [pair for pair in pairs if grader.grade(pair[0].task, pair[1].task.gold_sql) is Grade.CORRECT]
    grader.close()
    assert len(pairs) > 500
    # Where the question asks for no order, an ordered answer is right as well.
    is_ordered_twin = [b.task.gold_sql.startswith(f"{a.task.gold_sql} ORDER BY") for a, b in passed]
    assert all(is_ordered_twin)


def test_a_query_ends_at_the_first_semicolon_or_line_end():
    assert query_of(" name FROM t; SELECT 2") == "SELECT name FROM t"
    assert query_of(" name FROM t\nQ: next") == "SELECT name FROM t"
    assert query_of(" name FROM t") == "SELECT name FROM t"
