"""A well-behaved tenant in a process of its own: python -m tests.gateway.sdk_loop URL KEY ROUNDS.

Prints one line when it is at work, and one when all rounds have given what they must.
"""

import subprocess
import sys
import time

import tinker
from tinker import types

from tests.gateway.gateway_server import MODEL


def main(url: str, key: str, num_rounds: int) -> None:
    started = time.monotonic()
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        trainer = service.create_lora_training_client(MODEL.name, rank=8).result()
        print("at work", flush=True)
        for i in range(num_rounds):
            gradient = trainer.forward_backward([datum(i)], "cross_entropy")
            step = trainer.optim_step(types.AdamParams(learning_rate=1e-3))
            assert gradient.result().metrics is not None
            assert step.result().metrics == {"grad_norm": 1.5}
            sampler = trainer.save_weights_and_get_sampling_client().result()
            prompt = types.ModelInput.from_ints([i % 512, 2, 3])
            params = types.SamplingParams(max_tokens=4)
            answer = sampler.sample(prompt, num_samples=1, sampling_params=params).result()
            assert set(answer.sequences[0].tokens) == {i % 512}, answer
    print(f"done in {time.monotonic() - started:.1f} s", flush=True)


def datum(i: int) -> types.Datum:
    tokens = [i % 512, 2, 3]
    inputs = {"target_tokens": tokens, "weights": [1.0] * 3}
    return types.Datum(model_input=types.ModelInput.from_ints(tokens), loss_fn_inputs=inputs)  # pyright: ignore[reportArgumentType]


class SdkLoop:
    """The loop in a child process; `finish` raises unless every answer was right, and tells how long it took.

    The block of a `with` statement bounds the life of the process.
    """

    def __init__(self, url: str, key: str, num_rounds: int) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-m", __name__, url, key, str(num_rounds)),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        assert first == "at work\n", first + self._process.stdout.read()

    def __enter__(self) -> "SdkLoop":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def finish(self, timeout_s: float = 60.0) -> float:
        """Seconds that all rounds took."""
        output, _ = self._process.communicate(timeout=timeout_s)
        assert self._process.returncode == 0, output
        return float(output.splitlines()[-1].removeprefix("done in ").removesuffix(" s"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
