"""`helm test`: makes a key that ends itself, trains three steps through the SDK, samples from the result."""

import os
import subprocess
import sys

import tinker

TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]
STEPS = 3


def make_key() -> str:
    """A key for an hour, of the tenant "smoke"."""
    command = ["openrl", "keys", "create", "--tenant", "smoke", "--label", "helm test", "--ttl-s", "3600"]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.strip()


def main() -> None:
    """Exits with 1 unless the loss falls and tokens come."""
    model = os.environ["SMOKE_MODEL"]
    datum = tinker.Datum(
        tinker.ModelInput.from_ints(TOKENS[:-1]),
        {
            "target_tokens": tinker.TensorData(TOKENS[1:], "int64"),
            "weights": tinker.TensorData([1.0] * (len(TOKENS) - 1), "float32"),
        },
    )
    losses: list[float] = []
    with tinker.ServiceClient(base_url=os.environ["TINKER_BASE_URL"], api_key=make_key()) as service:
        trainer = service.create_lora_training_client(model, 8, 0).result()
        for step in range(STEPS):
            gradient = trainer.forward_backward([datum], "cross_entropy")
            trainer.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
            losses.append(gradient.result().metrics["loss:sum"])
            sys.stdout.write(f"step {step + 1}: loss {losses[-1]:.4f}\n")
        sampler = trainer.save_weights_and_get_sampling_client().result()
        prompt = tinker.ModelInput.from_ints(TOKENS[:4])
        reply = sampler.sample(prompt, 1, tinker.SamplingParams(max_tokens=4, temperature=0.0)).result()
    sys.stdout.write(f"sampled {list(reply.sequences[0].tokens)}\n")
    if not losses[-1] < losses[0] or not reply.sequences[0].tokens:
        sys.exit(f"the loss did not fall: {losses}")


if __name__ == "__main__":
    main()
