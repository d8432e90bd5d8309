"""What follows from a job alone."""

from openrl.sampling.request import EngineLimits, cache_key, choices_of, non_finite, open_request, seed_of
from tests.sampling.jobs import job
from tests.sampling.test_stopping import ByteDecoder

LIMITS = EngineLimits(vocab_size=100, context_length=64, cache_tokens=1000)


def test_seeds_use_all_64_bits_and_negative_ones_wrap():
    assert seed_of(job("r", [1], seed=2**64 - 1)) == 2**64 - 1
    assert seed_of(job("r", [1], seed=-1)) == 2**64 - 1
    assert seed_of(job("r", [1], seed=0)) == 0


def test_a_request_without_a_seed_gets_the_same_one_on_every_worker():
    assert seed_of(job("r", [1], seed=None)) == seed_of(job("r", [2], seed=None))
    assert seed_of(job("r", [1], seed=None)) != seed_of(job("q", [1], seed=None))


def test_only_requests_of_one_sampler_and_adapter_share_prefixes():
    keys = {
        cache_key(job("a", [1])),
        cache_key(job("b", [2])),
        cache_key(job("a", [1], adapter="x")),
        cache_key(job("a", [1], sampler_id="t")),
    }
    assert len(keys) == 3


def test_every_sample_draws_from_its_own_counter():
    request = open_request(job("r", [1, 2], num_samples=3, top_k=-1), 0, LIMITS, frozenset(), ByteDecoder())
    choices = choices_of(list(request.sequences), [request] * 3)
    assert len(set(choices.uniform.tolist())) == 3
    assert choices.top_k.tolist() == [0, 0, 0]


def test_a_request_that_failed_before_it_started_has_computed_nothing():
    request = open_request(job("r", [1, 2]), 0, LIMITS, frozenset(), ByteDecoder())
    assert not request.is_finished
    assert request.finished(non_finite()).num_tokens == 0
