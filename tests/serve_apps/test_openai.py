"""OpenAI's own client against a real server."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import openai
import pytest

from dendrite.config import SamplingParams
from tests.serve_apps.serving import PROMPT, Served

MODEL = "countdown"


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client:
        yield client
    served.wait_for_pages(0, 1.0)


def test_models_are_listed_with_the_searches_over_them(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert "countdown:mcts" in names
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_completion_is_what_the_engine_generates(client: openai.OpenAI, served: Served) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=40, seed=11)
    root = served.engine.prefill(PROMPT)
    (kid,) = root.fork()
    served.engine.decode(kid, SamplingParams(max_tokens=40, seed=11))
    assert answer.choices[0].text == kid.text
    assert answer.choices[0].finish_reason == kid.finish_reason
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), len(kid.tokens))
    root.release(subtree=True)


def test_a_stream_brings_the_same_text_and_the_usage(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=60, seed=3, n=3)
    texts, reasons, usage, chunks = ["", "", ""], [None] * 3, None, 0
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=60, seed=3, n=3, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            chunks += 1
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage
    assert chunks > 6


def test_n_choices_fork_one_prefill(client: openai.OpenAI, served: Served) -> None:
    before = served.engine.stats()
    prompt = "Numbers: 5 6 7 9. Target: 333.\n"
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=30, n=8, seed=1)
    after = served.engine.stats()
    assert len(answer.choices) == 8
    assert len({choice.text for choice in answer.choices}) > 1
    assert after.prefill_tokens - before.prefill_tokens <= len(prompt)
    assert after.forks - before.forks == 8


def test_a_stop_ends_the_text_before_it(client: openai.OpenAI) -> None:
    free = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=60, seed=3).choices[0]
    stop = free.text[10:13]
    cut = free.text[: free.text.index(stop)]
    for stream in (False, True):
        answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=60, seed=3, stop=stop, stream=stream)
        chunks = list(answer) if stream else [answer]
        assert "".join(chunk.choices[0].text for chunk in chunks) == cut
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_several_prompts_and_token_ids(client: openai.OpenAI) -> None:
    one = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, temperature=0)
    other = client.completions.create(model=MODEL, prompt=list(PROMPT.encode()), max_tokens=8, temperature=0)
    both = client.completions.create(model=MODEL, prompt=[PROMPT, "Numbers: 1 2 3. Target: 6.\n"], max_tokens=8, n=2)
    assert one.choices[0].text == other.choices[0].text
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]


def test_logprobs_are_the_models(client: openai.OpenAI, served: Served) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, seed=5, logprobs=3).choices[0]
    told = answer.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert "".join(told.tokens) == answer.text
    assert told.text_offset == list(range(12))
    root = served.engine.prefill(PROMPT)
    expected = served.engine.score(root, list(answer.text.encode()))
    root.release()
    assert told.token_logprobs == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 3
        assert token not in top or top[token] == logprob
        assert sum(map(math.exp, top.values())) <= 1.0 + 1e-6


def test_chat_with_logprobs_and_in_a_stream(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    options = {"model": MODEL, "messages": messages, "max_tokens": 20, "seed": 2, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.message.role == "assistant"
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    assert "".join(token.token for token in whole.logprobs.content) == whole.message.content
    assert all(len(token.top_logprobs) == 2 for token in whole.logprobs.content)
    text, tokens = "", []
    for chunk in client.chat.completions.create(**options, stream=True):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            tokens += chunk.choices[0].logprobs.content or []
    assert text == whole.message.content
    assert [token.logprob for token in tokens] == [token.logprob for token in whole.logprobs.content]


def test_bias_and_penalties_reach_the_sampler(client: openai.OpenAI) -> None:
    biased = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=4, logit_bias={str(ord("z")): 100})
    assert biased.choices[0].text == "zzzz"
    both = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "logit_bias": {"97": 90, "98": 90}}
    plain = client.completions.create(**both).choices[0].text
    penalised = client.completions.create(**both, frequency_penalty=2).choices[0].text
    assert max(map(plain.count, "ab")) > max(map(penalised.count, "ab"))


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"best_of": 3}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 129}, "n"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a.[key]"),
        ({"logit_bias": {"5000": 1}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
    ],
)
def test_a_bad_or_unsupported_field_is_named(client: openai.OpenAI, extra: dict[str, object], field: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body={"model": MODEL, "prompt": PROMPT, **extra}, cast_to=object)
    body = caught.value.body
    assert isinstance(body, dict)
    assert str(body["param"]).startswith(field.split(".")[0])
    assert field.split(".")[0] in body["message"]
    assert body["type"] == "invalid_request_error"


def test_chat_refuses_what_it_cannot_do(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    for extra in ({"tools": []}, {"parallel_tool_calls": True}, {"top_logprobs": 2}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=messages, **extra)
        assert caught.value.param == next(iter(extra))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model=MODEL, prompt="1" * 5_000)


def test_a_search_answers_a_chat(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Numbers: 3 4 50. Target: 62."}]
    options = {"model": "countdown:mcts", "messages": messages, "max_tokens": 3_000, "seed": 1}
    answer = client.chat.completions.create(**options)
    content = answer.choices[0].message.content
    assert content is not None
    assert content.rstrip().endswith("(62)")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 3_000
    streamed = "".join(
        chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**options, stream=True)
    )
    assert streamed == content
    with pytest.raises(openai.BadRequestError, match="problem"):
        client.chat.completions.create(model="countdown:mcts", messages=[{"role": "user", "content": "hello"}])
    for field, value in (("temperature", 0.5), ("max_tokens", 2_000_000)):
        with pytest.raises(openai.BadRequestError, match=field):
            client.chat.completions.create(**{**options, field: value})
    with pytest.raises(openai.BadRequestError, match="one message"):
        client.chat.completions.create(**{**options, "messages": messages * 2})
    *_, last = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    assert last.usage == answer.usage


def test_a_search_that_a_client_leaves_is_cancelled(client: openai.OpenAI, served: Served) -> None:
    messages = [{"role": "user", "content": "Numbers: 1 1 1 1. Target: 999."}]
    options = {"model": "countdown:mcts", "messages": messages, "max_tokens": 1_000_000, "stream": True}
    stream = client.chat.completions.create(**options)
    with served.client() as http:
        place = f"/v1/searches/{stream.response.headers['x-search-id']}"
        while not http.get(place).json()["events"]:
            pass
        stream.close()
        served.wait_for_pages(0, 10.0)
        assert http.get(place).json()["status"] == "cancelled"
        begun = client.chat.completions.create(**options)
        http.delete(f"/v1/searches/{begun.response.headers['x-search-id']}")
        with pytest.raises(openai.APIError, match="cancelled"):
            list(begun)


def test_the_newer_name_of_max_tokens(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "messages": [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}], "seed": 2}
    old = client.chat.completions.create(**options, max_tokens=7)
    new = client.chat.completions.create(**options, max_completion_tokens=7)
    assert new.choices[0].message.content == old.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="max_completion_tokens=1000000: at most"):
        client.chat.completions.create(**options, max_completion_tokens=10**6)
    with pytest.raises(openai.BadRequestError, match="max_tokens: not beside max_completion_tokens"):
        client.chat.completions.create(**options, max_tokens=7, max_completion_tokens=7)


def test_a_stream_is_not_kept_for_an_idempotency_key(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        client.completions.create(model=MODEL, prompt=PROMPT, stream=True, extra_headers={"idempotency-key": "a"})
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=PROMPT)


def test_a_client_that_leaves_frees_its_pages(client: openai.OpenAI, served: Served) -> None:
    stream = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=400, n=4, stream=True, logit_bias={"256": -100}
    )
    next(iter(stream))
    stream.close()
    assert served.wait_for_pages(0, 1.0) < 1.0


def test_a_request_that_is_given_up_frees_its_pages(served: Served) -> None:
    with served.client() as client, pytest.raises(Exception, match="timed out"):
        client.post(
            "/v1/completions",
            json={"model": MODEL, "prompt": PROMPT, "max_tokens": 400, "n": 32, "logit_bias": {"256": -100}},
            timeout=0.3,
        )
    time.sleep(0.05)
    assert served.wait_for_pages(0, 1.0) < 1.0
