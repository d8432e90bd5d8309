"""Distillation recipes: a student that is its teacher learns nothing; self-distillation, forwards and reverse."""

import pytest

from tests.cookbook.chat_model import SERVED_NAME
from tests.cookbook.recipes import FRESH, MODEL, Recipes

SIZE = ("group_size=2", "max_tokens=16", "eval_every=0", "lora_rank=8")
BENCHMARK = ("groups_per_batch=4", "max_tokens=24", "max_steps=2", "sft_batch_size=4", "sft_max_steps=2", "lora_rank=8")


def test_a_student_that_is_its_teacher_has_no_divergence(recipes: Recipes):
    teacher = f"teacher_model={SERVED_NAME}"
    run = recipes.run(
        "distillation.on_policy_distillation", MODEL, FRESH, teacher, "groups_per_batch=8", "max_steps=1", *SIZE
    )
    [divergence] = run.values("teacher_kl")
    assert abs(divergence) <= 1e-6
    recipes.note(run, "teacher_kl 0 ± 1e-6 where the student is the teacher", f"{divergence:.0e}")


def test_4096_rollouts_are_sampled_and_scored_at_once(recipes: Recipes):
    size = ("groups_per_batch=1024", "group_size=4", "max_tokens=4", "max_steps=1", "eval_every=0", "lora_rank=8")
    run = recipes.run("distillation.on_policy_distillation", MODEL, FRESH, f"teacher_model={SERVED_NAME}", *size)
    [episodes], [divergence] = run.values("env/all/total_episodes"), run.values("teacher_kl")
    assert episodes == 4096
    assert abs(divergence) <= 1e-6
    recipes.note(run, "rollouts in one step, each scored by the teacher; teacher_kl 0 ± 1e-6", f"{episodes:,.0f}")


def test_two_teachers_for_two_data_sets(recipes: Recipes):
    teachers = (f"deepmath_teacher_model={SERVED_NAME}", "tulu3_teacher_model=Qwen/Qwen3.5-9B")
    groups = ("deepmath_groups_per_batch=4", "tulu3_groups_per_batch=4", "max_steps=1")
    run = recipes.run("distillation.on_policy_multi_teacher", MODEL, FRESH, *teachers, *groups, *SIZE)
    divergences = [*run.values("teacher_kl/dataset_0"), *run.values("teacher_kl/dataset_1")]
    assert max(map(abs, divergences)) <= 1e-6
    recipes.note(run, "teacher_kl 0 ± 1e-6 for both teachers, which are the student", f"{max(divergences):.0e}")


@pytest.mark.parametrize("form", ["topk=5", "topk=5 reverse=True"])
def test_a_model_teaches_itself(recipes: Recipes, form: str):
    size = ("groups_per_batch=4", "max_tokens=16", "max_steps=2", "lora_rank=8", "eval_every=0")
    run = recipes.run("sdft.train", MODEL, FRESH, *form.split(), *size)
    gradients = run.values("grad_norm")
    assert len(gradients) == 2
    assert min(gradients) > 0
    recipes.note(run, "gradients at every step", f"{min(gradients):.3g}")


def test_self_distillation_on_the_other_data_set(recipes: Recipes):
    size = ("groups_per_batch=4", "max_tokens=16", "max_steps=2", "lora_rank=8", "eval_every=0")
    run = recipes.run("sdft.train", MODEL, FRESH, "dataset=toolalpaca", "topk=5", *size)
    recipes.note(run, "gradients at every step", f"{min(run.values('grad_norm')):.3g}")


def test_the_benchmark_of_self_distillation_trains_and_measures_both_ways(recipes: Recipes):
    data = f"data_dir={recipes.workspace / 'self-distillation'}"
    logs = f"log_root={recipes.workspace / 'runs' / 'benchmark'}"
    run = recipes.run("sdft.benchmark", MODEL, FRESH, "dataset=science", data, logs, *BENCHMARK, own_log=True)
    recipes.note(run, "base, SFT and SDFT measured", "done")


def test_one_task_is_learned_after_another(recipes: Recipes):
    data = f"data_dir={recipes.workspace / 'self-distillation'}"
    logs = f"log_root={recipes.workspace / 'runs' / 'continual'}"
    size = ("batch_size=6", "max_tokens=16", "lora_rank=8", "methods=sft,sdft_is", "learning_rates=1e-4")
    run = recipes.run("sdft.run_continual_learning", MODEL, data, logs, *size, own_log=True)
    recipes.note(run, "two stages each of SFT and of SDFT by importance sampling", "done")
