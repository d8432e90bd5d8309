"""An attempt of the study beside it: how well a few sequences are learned in ten steps, by rank and learning rate."""

import os

import tinker

from openrl.research import Attempt

SEQUENCES = [[start + 7 * index for index in range(12)] for start in (100, 200, 300, 400)]


def datum_of(tokens: list[int]) -> tinker.Datum:
    """Each token predicts the next."""
    inputs = {
        "target_tokens": tinker.TensorData(tokens[1:], "int64"),
        "weights": tinker.TensorData([1.0] * (len(tokens) - 1), "float32"),
    }
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)


def main() -> None:
    """Reports the mean log-probability of a token before each step."""
    attempt = Attempt.current(defaults={"rank": 16, "learning_rate": 1e-3})
    datums = [datum_of(each) for each in SEQUENCES]
    rank, rate = int(attempt.params["rank"]), float(attempt.params["learning_rate"])
    with attempt.service_client() as service:
        model = os.environ.get("STUDY_MODEL", "smollm2-135m-instruct")
        trainer = service.create_lora_training_client(model, rank, attempt.seed, train_unembed=False).result()
        for step in range(int(os.environ.get("STUDY_STEPS", "10"))):
            gradient = trainer.forward_backward(datums, "cross_entropy")
            trainer.optim_step(tinker.AdamParams(learning_rate=rate)).result()
            outputs = gradient.result().loss_fn_outputs
            scores = [score for each in outputs for score in each["logprobs"].data]
            if attempt.report(step + 1, score=sum(scores) / len(scores)):
                break


if __name__ == "__main__":
    main()
