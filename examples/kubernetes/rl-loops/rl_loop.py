"""One loop of reinforcement learning with the tinker SDK alone; an Indexed Job runs several, told apart by their index.

The reward is the share of tokens with an even number in an answer: nothing to read, and at half before training.
"""

import os
from statistics import fmean, pstdev

import tinker

PROMPTS = [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34], [41, 42, 43, 44]]
SAMPLES = 8
TOKENS = 16


def reward_of(tokens: list[int]) -> float:
    """The share of even tokens."""
    return fmean(token % 2 == 0 for token in tokens) if tokens else 0.0


def datums_of(prompt: list[int], samples: list[tinker.SampledSequence]) -> list[tinker.Datum]:
    """Makes answers likelier that are better than their group; equal rewards say nothing about what is better."""
    rewards = [reward_of(list(sample.tokens)) for sample in samples]
    mean, spread, padding = fmean(rewards), pstdev(rewards), [0.0] * (len(prompt) - 1)
    datums: list[tinker.Datum] = []
    for sample, reward in zip(samples, rewards, strict=True) if spread else ():
        tokens = prompt + list(sample.tokens)
        inputs = {
            "target_tokens": tinker.TensorData(tokens[1:], "int64"),
            "logprobs": tinker.TensorData(padding + list(sample.logprobs or ()), "float32"),
            "advantages": tinker.TensorData(padding + [(reward - mean) / spread] * len(sample.tokens), "float32"),
        }
        datums.append(tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


def step(trainer: tinker.TrainingClient, rate: float, seed: int) -> float:
    """Samples groups from a new snapshot, learns from them; returns their mean reward."""
    sampler = trainer.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=TOKENS, temperature=1.0, seed=seed)
    futures = [sampler.sample(tinker.ModelInput.from_ints(prompt), SAMPLES, params) for prompt in PROMPTS]
    groups = [list(future.result().sequences) for future in futures]
    datums = [datum for prompt, samples in zip(PROMPTS, groups, strict=True) for datum in datums_of(prompt, samples)]
    if datums:
        gradient = trainer.forward_backward(datums, "importance_sampling")
        trainer.optim_step(tinker.AdamParams(learning_rate=rate)).result()
        gradient.result()
    return fmean(reward_of(list(sample.tokens)) for samples in groups for sample in samples)


def main() -> None:
    """Trains for RL_STEPS steps at the rate of this index, then names the checkpoint."""
    index = int(os.environ.get("JOB_COMPLETION_INDEX", "0"))
    rate = float(os.environ.get("RL_RATE", "1e-3")) * 2**index
    with tinker.ServiceClient() as service:  # TINKER_BASE_URL and TINKER_API_KEY
        model = os.environ.get("RL_MODEL", "smollm2-135m-instruct")
        trainer = service.create_lora_training_client(model, 16, index, train_unembed=False).result()
        for number in range(int(os.environ.get("RL_STEPS", "10"))):
            print(f"loop {index} step {number + 1} mean reward {step(trainer, rate, number):.3f}", flush=True)
        saved = trainer.save_state(f"loop-{index}").result()
    print(f"loop {index} saved {saved.path}")


if __name__ == "__main__":
    main()
