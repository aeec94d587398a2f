"""Generations that share a context: each is what it is alone, whoever comes and goes beside it."""

from pathlib import Path

import pytest

import gguf_moe
from gguf_moe.errors import BusyError, QueueFullError
from gguf_moe.scheduler import Job

FIXTURE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"
LONG = "A fox saw the sea and the old lamp of a village between two rivers. " * 5
PROMPTS = ["Once upon a time", "A fox", LONG, "Once upon a time, in a village", "The sea"]


class Heard(Job):
    """A job that keeps what it is told."""

    def __init__(self, continuation):
        self.pieces, self.ends = [], []
        super().__init__(continuation, self.pieces.append, self.ends.append)

    @property
    def result(self):
        return self.continuation.result


@pytest.fixture(scope="module")
def model(kernel_cache):
    with gguf_moe.load(FIXTURE, threads=2, parallel=3, n_ctx=256, cache_dir=kernel_cache) as model:
        yield model


@pytest.fixture(scope="module")
def alone(kernel_cache):
    """The tokens of each prompt when nobody else is there."""
    with gguf_moe.load(FIXTURE, threads=1, n_ctx=256, cache_dir=kernel_cache) as model:
        results = [model.generate(prompt, max_tokens=12, temperature=0) for prompt in PROMPTS]
        for result in results:
            list(result)
        return {p: r.result.token_ids for p, r in zip(PROMPTS, results, strict=True)}


def job(model, prompt, max_tokens=12, **options):
    return Heard(model.continuation(prompt, max_tokens=max_tokens, **{"temperature": 0} | options))


def run(scheduler):
    while scheduler.step():
        assert scheduler.n_active <= 3


def test_each_job_writes_what_it_writes_alone(model, alone):
    with model.scheduler(n_waiting=8) as scheduler:
        jobs = [job(model, prompt) for prompt in PROMPTS]
        scheduler.submit(*jobs[:2])
        for _ in range(4):
            scheduler.step()
        scheduler.submit(*jobs[2:])
        run(scheduler)
        assert scheduler.counts.n_generated_tokens == sum(len(tokens) for tokens in alone.values())
    for prompt, heard in zip(PROMPTS, jobs, strict=True):
        assert heard.result.token_ids == alone[prompt]
        assert heard.ends == [None]
        assert "".join(piece.text for piece in heard.pieces) == heard.result.text
        assert heard.result.finish_reason in ("length", "stop")


def test_a_prompt_in_parts_does_not_stop_those_that_decode(model):
    with model.scheduler(n_waiting=0) as scheduler:
        first, second = job(model, "A fox", 20), job(model, LONG[4:], 2)
        scheduler.submit(first)
        scheduler.step()
        scheduler.submit(second)
        n_before = len(first.result.token_ids)
        scheduler.step()
        assert len(first.result.token_ids) == n_before + 1
        assert not second.pieces
        run(scheduler)
        assert len(second.result.token_ids) == 2


def test_what_another_has_computed_is_reused_while_it_goes_on(model, alone):
    with model.scheduler(n_waiting=0) as scheduler:
        first, second = job(model, LONG, 40), job(model, LONG, 12)
        scheduler.submit(first)
        scheduler.step()
        scheduler.submit(second)
        run(scheduler)
        assert second.result.n_reused == len(second.prompt) - 1
        assert second.result.token_ids == first.result.token_ids[:12] == alone[LONG]


def test_a_cancelled_job_ends_and_frees_its_place(model, alone):
    with model.scheduler(n_waiting=1) as scheduler:
        jobs = [job(model, "A fox", 200), *(job(model, "The sea", 200) for _ in range(2))]
        waiting, last = job(model, "A fox"), job(model, "The sea")
        scheduler.submit(*jobs)
        scheduler.step()
        scheduler.submit(waiting)
        with pytest.raises(QueueFullError, match="3 requests are being answered and 1 wait"):
            scheduler.submit(last)
        scheduler.cancel(waiting)
        scheduler.cancel(jobs[1])
        scheduler.step()
        assert (waiting.ends, waiting.pieces, jobs[1].ends) == ([None], [], [None])
        assert scheduler.n_active == 2
        scheduler.submit(last)
        scheduler.cancel(jobs[0])
        scheduler.cancel(jobs[2])
        run(scheduler)
        assert last.result.token_ids == alone["The sea"]


def test_a_failed_step_ends_its_jobs_and_no_others(model, alone, monkeypatch):
    with model.scheduler(n_waiting=4) as scheduler:
        failed, later = job(model, "A fox"), job(model, "The sea")
        scheduler.submit(failed)
        with monkeypatch.context() as patch:
            patch.setattr(model._context, "step", lambda parts: 1 / 0)
            assert scheduler.step()
        assert isinstance(failed.ends[0], ZeroDivisionError)
        scheduler.submit(later)
        run(scheduler)
        assert later.result.token_ids == alone["The sea"]


def test_a_model_with_a_scheduler_is_busy_and_its_jobs_end_with_it(model):
    left = job(model, "A fox")
    with model.scheduler(n_waiting=0) as scheduler:
        with pytest.raises(BusyError):
            next(model.generate("A fox"))
        scheduler.submit(left)
        scheduler.step()
    assert isinstance(left.ends[0], BusyError)
    assert len(list(model.generate("A fox", max_tokens=2))) >= 1


def test_log_probabilities_of_the_chosen_and_the_likeliest(model):
    with model.scheduler(n_waiting=0) as scheduler:
        heard = job(model, "A fox", 3, n_logprobs=2)
        scheduler.submit(heard)
        run(scheduler)
    for piece in heard.pieces:
        (token, first), (_, second) = list(piece.logprobs.items())
        assert token == piece.token  # greedy: the likeliest is the chosen one
        assert 0 > first >= second
