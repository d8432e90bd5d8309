import numpy as np
import tinker

from recipes.datums import reinforced, supervised


def test_a_supervised_weighs_the_completion_and_not_the_prompt():
    datum = supervised([1, 2, 3], [4, 5])
    assert datum.model_input.to_ints() == [1, 2, 3, 4]
    assert datum.loss_fn_inputs["target_tokens"].data == [2, 3, 4, 5]
    assert datum.loss_fn_inputs["weights"].data == [0.0, 0.0, 1.0, 1.0]


def test_a_reinforced_carries_the_sampler_s_logprobs_in_place():
    sample = tinker.SampledSequence(
        stop_reason="stop",
        sequence_id="s",
        tokens_np=np.array([4, 5], np.int32),
        logprobs_np=np.array([-0.5, -0.25], np.float32),
    )
    datum = reinforced([1, 2, 3], sample, advantage=2.0)
    assert datum.model_input.to_ints() == [1, 2, 3, 4]
    assert datum.loss_fn_inputs["target_tokens"].data == [2, 3, 4, 5]
    assert datum.loss_fn_inputs["logprobs"].data == [0.0, 0.0, -0.5, -0.25]
    assert datum.loss_fn_inputs["advantages"].data == [0.0, 0.0, 2.0, 2.0]
