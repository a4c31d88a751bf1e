"""The `openai` package against a running aisp-serve: what its users do, and the errors that they meet.

Usage: openai_client.py BASE_URL API_KEY
The server must allow one sequence at a time and one more in the queue.
"""

import sys
import threading

import openai

base_url, api_key = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
CHAT = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me about a dog."}]


def chat(**options):
    return client.chat.completions.create(model=MODEL, messages=CHAT, temperature=0, max_tokens=16, **options)


def complete(**options):
    options = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 16, **options}
    return client.completions.create(model=MODEL, **options)


def expect(error, call, **fields):
    try:
        call()
    except error as raised:
        assert type(raised) is error, f"{type(raised)} is not {error}"
        assert raised.body["message"] and raised.type, raised.body
        for name, value in fields.items():
            assert getattr(raised, name) == value, f"{name} is {getattr(raised, name)!r}, not {value!r}"
        return raised
    raise AssertionError(f"{error.__name__} was not raised")


def test_models():
    assert client.models.retrieve(MODEL).id == MODEL
    expect(openai.NotFoundError, lambda: client.models.retrieve("gpt-4"), code="model_not_found")


def test_chat():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content, (text, choice.message.content)
    assert chunks[-1].choices == [] and chunks[-1].usage == answer.usage


def test_completion():
    answer = complete()
    assert answer.choices[0].text and answer.object == "text_completion"
    chunks = list(complete(stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason
    echoed = complete(echo=True).choices[0].text
    assert echoed == "Once upon a time" + answer.choices[0].text
    ids = complete(prompt=[5, 6, 7])
    assert ids.usage.prompt_tokens == 3


def test_logprobs():
    content = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) > 0
    for token in content:
        assert len(token.top_logprobs) == 3 and token.logprob <= 0
        # Temperature 0 takes the most likely token.
        assert token.logprob == token.top_logprobs[0].logprob
        assert bytes(token.bytes).decode(errors="replace") == token.token
    logprobs = complete(logprobs=2).choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 16
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)
    streamed = [chunk.choices[0].logprobs for chunk in complete(logprobs=2, stream=True)]
    assert [token for chunk in streamed for token in chunk.tokens] == logprobs.tokens


def test_n_and_seed():
    options = {"n": 2, "temperature": 1.5, "seed": 7}
    first, second = complete(**options), complete(**options)
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert texts[0] != texts[1] and [choice.index for choice in first.choices] == [0, 1]
    streamed = ["", ""]
    for chunk in complete(stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts, (streamed, texts)


def test_stop():
    whole = complete().choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    choice = complete(stop=stop).choices[0]
    assert choice.text == whole.split(stop)[0] and choice.finish_reason == "stop"
    streamed = "".join(chunk.choices[0].text for chunk in complete(stop=[stop, "never"], stream=True))
    assert streamed == choice.text


def test_fields_beyond_openai():
    extra = {"top_k": 1, "min_tokens": 4, "ignore_eos": True, "repetition_penalty": 1.1, "return_token_ids": True}
    answer = complete(temperature=1, extra_body=extra)
    assert len(answer.choices[0].token_ids) == 16


def test_errors():
    expect(openai.BadRequestError, lambda: complete(temperature=9000), param="temperature", code=None)
    expect(openai.BadRequestError, lambda: complete(max_tokens=10**6), code="context_length_exceeded")
    expect(openai.BadRequestError, lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}]), param="tools")
    expect(openai.BadRequestError, lambda: chat(extra_body={"temprature": 1}), code="unknown_parameter")
    wrong_model = lambda: client.chat.completions.create(model="gpt-4", messages=CHAT)
    expect(openai.NotFoundError, wrong_model, code="model_not_found", param="model")
    stranger = client.with_options(api_key="wrong")
    expect(openai.AuthenticationError, lambda: stranger.models.list(), code="invalid_api_key")


def test_rate_limit():
    stream = complete(max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    waiting = threading.Thread(target=lambda: complete(max_tokens=1))
    waiting.start()
    raised = None
    for _ in range(1000):
        try:
            complete(max_tokens=1, extra_body={"n": 2})
        except openai.RateLimitError as error:
            raised = error
            break
        except openai.BadRequestError:
            raise
    assert raised is not None and raised.code == "rate_limit_exceeded", raised
    assert raised.response.headers["retry-after"] == "1"
    stream.close()
    waiting.join()


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print("ok", name)
