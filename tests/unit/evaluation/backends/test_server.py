"""The `server` backend against an endpoint that misbehaves on demand, and against a real one, `transformers serve`."""

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import free_port

from trl_credit.evaluation.backends.base import BackendError, Generation, Request, SamplingSettings
from trl_credit.evaluation.backends.server import ServerBackend, ServerSettings, allow_open_files


KEY = "sk-very-secret"

SAMPLING = SamplingSettings(temperature=0.7, top_p=0.9, max_tokens=32)

CARD = {"id": "tiny", "object": "model", "created": 1, "owned_by": "vllm", "root": "org/tiny", "max_model_len": 4096}


@dataclass
class Reply:
    body: object
    status: int = 200
    headers: dict = field(default_factory=dict)
    missing: int = 0  # bytes that are promised and not sent
    drip: float = 0.0  # seconds between two bytes


def answer(text="4", *, finish="stop", tokens=2, chat=False, **message) -> dict:
    choice = {"index": 0, "finish_reason": finish}
    choice |= {"message": {"role": "assistant", "content": text, **message}} if chat else {"text": text}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


class Endpoint:
    """Answers requests by `script(body, attempt)`, the attempts of a seed counted from 0, with a `Reply` or a body."""

    def __init__(self, script=None, models=None, tokenize=None):
        self.tokenize, self.counted, self.looks = tokenize, [], 0
        self.script = script or (lambda body, attempt: answer(str(body["seed"]), chat="messages" in body))
        self.models = models if models is not None else {"object": "list", "data": [CARD]}
        self.requests, self.keys, self.times = [], [], []
        self.busy = self.busiest = 0
        self.is_silent = False  # accepts connections and does not answer GET
        self.lock, self.released = threading.Lock(), threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                endpoint.keys.append(self.headers["Authorization"])
                endpoint.looks += 1
                if endpoint.is_silent:
                    return endpoint.hang()
                found = self.path.partition("?")[0] == "/v1/models"
                self.reply(endpoint.models if found else Reply("no such page", 404))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.partition("?")[0] == "/tokenize":
                    with endpoint.lock:
                        endpoint.counted.append(body)
                        endpoint.keys.append(self.headers["Authorization"])
                    return self.reply(endpoint.tokenize(body) if endpoint.tokenize else Reply("no such page", 404))
                with endpoint.lock:
                    attempt = sum(seen["seed"] == body["seed"] for _, seen in endpoint.requests)
                    endpoint.requests.append((self.path, body))
                    endpoint.times.append(time.monotonic())
                    endpoint.keys.append(self.headers["Authorization"])
                    endpoint.busy += 1
                    endpoint.busiest = max(endpoint.busiest, endpoint.busy)
                try:
                    reply = endpoint.script(body, attempt)
                finally:
                    with endpoint.lock:
                        endpoint.busy -= 1
                if reply is not None:
                    self.reply(reply)

            def reply(self, reply):
                reply = reply if isinstance(reply, Reply) else Reply(reply)
                body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    headers = {"Content-Type": "application/json", "Content-Length": len(body) + reply.missing}
                    for name, value in (headers | reply.headers).items():
                        self.send_header(name, str(value))
                    self.end_headers()
                    for i in range(0, len(body), 1 if reply.drip else len(body)):
                        self.wfile.write(body[i:] if not reply.drip else body[i : i + 1])
                        if endpoint.released.wait(reply.drip):
                            return
                except OSError:  # the client has hung up
                    pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def hang(self):
        self.released.wait(20)

    def die(self):
        """Stops listening, and answers nothing more."""
        self.server.socket.close()

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def backend(url, *, chat_template_kwargs=None, **settings) -> ServerBackend:
    settings = {"model": "tiny", "api_key": KEY, "backoff": 0.001, "max_retries": 2, "request_timeout": 10.0} | settings
    return ServerBackend(ServerSettings(base_url=url, **settings), chat_template_kwargs)


def requests(n, chat=False) -> list[Request]:
    prompt = ({"role": "user", "content": "2+2=?"},) if chat else "2+2="
    return [Request("task", i // 4, i % 4, 1000 + i, prompt) for i in range(n)]


class Made(dict):
    """The generations by the seeds of their requests."""

    def __call__(self, request, generation):
        assert request.seed not in self
        self[request.seed] = generation


def run(url, todo, sampling=SAMPLING, **settings) -> Made:
    made = Made()
    backend(url, **settings).generate(todo, sampling, made)
    return made


# --- what is sent ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_every_sample_is_made_with_its_own_seed(chat):
    def script(body, attempt):
        time.sleep(0.002 * (body["seed"] % 7))  # answers arrive in another order
        return answer(str(body["seed"]), chat=chat)

    todo, made, threads = requests(60, chat), Made(), set()

    def emit(request, generation):
        made(request, generation)
        threads.add(threading.get_ident())

    with Endpoint(script) as endpoint:
        backend(endpoint.url, concurrency=8).generate(todo, SAMPLING, emit)
    assert made == {request.seed: Generation(str(request.seed), 2, "stop") for request in todo}
    assert list(made) != sorted(made)
    assert threads == {threading.get_ident()}
    assert {path for path, _ in endpoint.requests} == {"/v1/chat/completions" if chat else "/v1/completions"}
    assert len(endpoint.requests) == 60
    body = endpoint.requests[0][1]
    assert body.pop("messages" if chat else "prompt") == ([{"role": "user", "content": "2+2=?"}] if chat else "2+2=")
    neutral = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
    assert body == {"model": "tiny", "temperature": 0.7, "top_p": 0.9, "max_tokens": 32, "seed": body["seed"]} | neutral
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


def test_token_ids_are_sent_and_asked_for():
    def script(body, attempt):
        choice = {"index": 0, "finish_reason": "stop", "text": "4", "token_ids": [7, 1]}
        return {"choices": [choice], "usage": {"completion_tokens": 2}}

    with Endpoint(script) as endpoint:
        made = run(endpoint.url, [Request("task", 0, 0, 1, (5, 6), max_tokens=3)])
    path, body = endpoint.requests[0]
    assert path == "/v1/completions"
    assert body["prompt"] == [5, 6]
    assert body["max_tokens"] == 3
    assert body["return_token_ids"] is True
    assert made[1].ids == (7, 1)


def test_every_sampling_field_is_sent():
    sampling = SamplingSettings(
        0, top_p=0.8, top_k=20, min_p=0.1, repetition_penalty=1.2, max_tokens=9, stop=("A", "B")
    )
    with Endpoint() as endpoint:
        run(endpoint.url, requests(1, chat=True), sampling, chat_template_kwargs={"enable_thinking": False})
    body = endpoint.requests[0][1]
    expected = sampling.as_dict() | {"chat_template_kwargs": {"enable_thinking": False}}
    assert {name: body[name] for name in expected} == expected


def strict(body, attempt):
    unknown = {"top_k", "min_p", "repetition_penalty"} & body.keys()
    return Reply({"detail": f"Unexpected fields in the request: {unknown}"}, 422) if unknown else answer()


def test_a_server_that_rejects_a_neutral_field_gets_it_no_more(caplog):
    with Endpoint(strict) as endpoint:
        made = run(endpoint.url, requests(40), concurrency=4)
    assert len(made) == 40
    assert len(endpoint.requests) <= 44
    assert len([r for r in caplog.records if "does not know min_p, repetition_penalty, top_k" in r.message]) == 1


def test_a_server_that_rejects_a_field_that_was_set():
    with Endpoint(strict) as endpoint, pytest.raises(BackendError, match=r"422 Unexpected fields.*{'top_k'}"):
        run(endpoint.url, requests(1), SamplingSettings(1.0, top_k=5))
    assert [("top_k" in body, "min_p" in body) for _, body in endpoint.requests] == [(True, True), (True, False)]


def test_never_more_requests_than_allowed():
    def script(body, attempt):
        time.sleep(0.02)
        return answer()

    with Endpoint(script) as endpoint:
        assert len(run(endpoint.url, requests(40), concurrency=5)) == 40
    assert endpoint.busiest == 5


# --- what is answered -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (answer("x", finish="length", tokens=32, chat=True), Generation("x", 32, "length")),
        (answer("x", finish="content_filter", chat=True), Generation("x", 2, "stop")),
        (answer(None, chat=True), Generation("", 2, "stop")),
        (answer("4", chat=True, reasoning_content="2 and 2"), Generation("<think>2 and 2</think>4", 2, "stop")),
        (answer("4", chat=True, reasoning="2 and 2"), Generation("<think>2 and 2</think>4", 2, "stop")),
        (answer("4", chat=True, reasoning_content=None), Generation("4", 2, "stop")),
        (answer(None, chat=True, finish="length", reasoning="2 and"), Generation("<think>2 and", 2, "length")),
        (answer("", chat=True, finish="stop", reasoning="2 and"), Generation("<think>2 and</think>", 2, "stop")),
        (answer("x", finish="length", chat=True, reasoning="y"), Generation("<think>y</think>x", 2, "length")),
        ({**answer("x", chat=True), "usage": None}, Generation("x", None, "stop")),
        ({"choices": answer("x")["choices"]}, Generation("x", None, "stop")),
    ],
)
def test_an_answer_becomes_a_generation(reply, expected):
    with Endpoint(lambda body, attempt: reply) as endpoint:
        assert list(run(endpoint.url, requests(1, chat=True)).values()) == [expected]


BAD = {
    "500": Reply({"error": {"message": "boom"}}, 500),
    "503 in HTML": Reply(b"<html>no backend</html>", 503, {"Content-Type": "text/html"}),
    "429": Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.3"}),
    "408": Reply({}, 408),
    "cut body": Reply(answer(), missing=50),
    "cut JSON": Reply(json.dumps(answer()).encode()[:-20]),
    "no JSON": Reply(b"<html>hello</html>", headers={"Content-Type": "text/html"}),
    "no bytes": Reply(b""),
    "a list": [answer()],
    "an error with 200": {"error": {"message": "boom"}},
    "no choices": answer() | {"choices": []},
    "choices of another type": answer() | {"choices": "4"},
    "a message of another type": {"choices": [{"message": "4", "finish_reason": "stop"}]},
    "no text": {"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}]},
    "a number": answer(4),
    "no finish_reason": {"choices": [{"text": "4"}]},
    "finish_reason null": answer(finish=None),
    "aborted": answer(finish="abort"),
    "strange usage": answer(tokens="2"),
    "drip": Reply(answer(), drip=0.05),
    "hang": "hang",
    "hang up": None,
}


@pytest.mark.parametrize("bad", BAD)
def test_a_failure_that_passes_is_tried_again(bad):
    def script(body, attempt):
        if body["seed"] != 1001 or attempt == 2:
            return answer("good")
        return endpoint.hang() if BAD[bad] == "hang" else BAD[bad]

    with Endpoint(script) as endpoint:
        made = run(endpoint.url, requests(3), request_timeout=0.4 if bad in ("drip", "hang") else 10.0)
    assert [made[seed].text for seed in (1000, 1001, 1002)] == ["good"] * 3
    assert len(endpoint.requests) == 5
    if bad == "429":
        seeds = [body["seed"] for _, body in endpoint.requests]
        first, second, third = (t for t, seed in zip(endpoint.times, seeds, strict=True) if seed == 1001)
        assert second - first >= 0.3
        assert third - second >= 0.3


def test_a_request_that_always_fails_does_not_stop_the_others():
    def script(body, attempt):
        return Reply({"error": {"message": f"boom with {KEY}"}}, 500) if body["seed"] in (1003, 1007) else answer()

    made = Made()
    with (
        Endpoint(script) as endpoint,
        pytest.raises(BackendError, match="2 of 20 samples") as error,
    ):
        backend(endpoint.url, concurrency=1, give_up_after=2).generate(requests(20), SAMPLING, made)
    assert set(made) == set(range(1000, 1020)) - {1003, 1007}
    assert len(endpoint.requests) == 18 + 2 * 3
    assert all(words in str(error.value) for words in ("after 3 attempts: 500 boom", "run the same command again"))
    assert KEY not in str(error.value)


def test_waits_double(monkeypatch):
    waits, sleep = [], asyncio.sleep

    async def record(seconds):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", record)
    with Endpoint(lambda *_: Reply({}, 500)) as endpoint, pytest.raises(BackendError, match="after 10 attempts"):
        run(endpoint.url, requests(1), backoff=1.0, max_retries=9)
    assert len(waits) == 9
    shares = [wait / most for wait, most in zip(waits, (1, 2, 4, 8, 16, 32, 60, 60, 60), strict=True)]
    assert all(0.5 <= share <= 1 for share in shares)
    assert len(set(shares)) == 9  # by chance, so that requests that failed together do not come back together


@pytest.mark.parametrize(
    ("status", "body", "match"),
    [
        (400, {"error": {"message": "This model's maximum context length is 64 tokens."}}, "400 .*64 tokens. Lower"),
        (400, {"object": "error", "message": "temperature is wrong"}, "400 temperature is wrong"),
        (401, {"error": {"message": f"{KEY} is wrong"}}, r"401 \*\*\* is wrong.*OPENAI_API_KEY"),
        (403, {"detail": "no"}, "403 no.*OPENAI_API_KEY"),
        (404, {"error": {"message": "The model `tiny` does not exist."}}, "404 The model `tiny` does not exist. Does"),
        (422, {"detail": [{"loc": ["seed"], "msg": "too large"}]}, "422 .*too large"),
    ],
)  # fmt: skip
def test_an_error_that_no_retry_changes_ends_the_run(status, body, match, caplog):
    def script(request, attempt):
        if request["seed"] == 1005:
            time.sleep(0.2)  # those before it are finished
            return Reply(body, status)
        return answer() if request["seed"] < 1005 else endpoint.hang()

    made = Made()
    with (
        Endpoint(script) as endpoint,
        caplog.at_level(logging.DEBUG),
        pytest.raises(BackendError, match=match) as error,
    ):
        backend(endpoint.url, concurrency=2).generate(requests(50), SAMPLING, made)
    assert set(made) == set(range(1000, 1005))
    assert sum(body["seed"] == 1005 for _, body in endpoint.requests) == 1
    assert endpoint.url in str(error.value)
    assert KEY not in str(error.value) + caplog.text


def test_an_endpoint_that_dies_for_good():
    def script(body, attempt):
        if body["seed"] < 1030:
            return answer()
        endpoint.die()

    made = Made()
    with Endpoint(script) as endpoint, pytest.raises(BackendError, match="the last 8 requests failed") as error:
        backend(endpoint.url, concurrency=4).generate(requests(2000), SAMPLING, made)
    assert set(made) == set(range(1000, 1030))
    assert all(words in str(error.value) for words in (endpoint.url, "after 3 attempts", "Connect", "are kept"))


# --- being stopped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError])
def test_what_emit_raises_ends_the_run(error):
    def script(body, attempt):
        return answer() if body["seed"] == 1000 else endpoint.hang()

    def emit(request, generation):
        raise error("enough")

    with Endpoint(script) as endpoint, pytest.raises(error, match="enough"):
        backend(endpoint.url, concurrency=4).generate(requests(20), SAMPLING, emit)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run(number):
    def stop(*_):
        raise SystemExit(143)

    # A shell's background jobs ignore SIGINT
    handlers = {signal.SIGTERM: stop, signal.SIGINT: signal.default_int_handler}
    previous = {name: signal.signal(name, handler) for name, handler in handlers.items()}
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    try:
        with Endpoint(lambda *_: endpoint.hang()) as endpoint:
            timer.start()
            with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
                run(endpoint.url, requests(20), concurrency=4)
    finally:
        timer.cancel()
        for name, handler in previous.items():
            signal.signal(name, handler)


def test_within_an_event_loop():
    async def notebook(url):
        with pytest.raises(BackendError, match="to_thread"):
            run(url, requests(1))
        return await asyncio.to_thread(run, url, requests(1))

    with Endpoint() as endpoint:
        assert len(asyncio.run(notebook(endpoint.url))) == 1


# --- the start ------------------------------------------------------------------------------------------------------


def test_identity_is_the_model_and_not_the_address():
    def models(**changes):
        return {"data": [CARD | {"permission": [{"id": "modelperm-1"}], "parent": None} | changes, {"id": "other"}]}

    with Endpoint(models=models()) as first, Endpoint(models=models(created=2)) as second:
        identity = backend(first.url).identity()
        assert (
            identity == backend(second.url).identity() == {"model": "tiny", "root": "org/tiny", "max_model_len": 4096}
        )
    with Endpoint(models=models(max_model_len=8192)) as other:
        assert backend(other.url).identity() != identity
        thinking = backend(other.url, chat_template_kwargs={"enable_thinking": True}).identity()
        assert thinking["chat_template_kwargs"] == {"enable_thinking": True}
    assert first.keys == [f"Bearer {KEY}"]


def test_a_model_that_is_not_served():
    with Endpoint() as endpoint, pytest.raises(BackendError, match=r"does not serve 'tinny'\. Did you mean 'tiny'"):
        backend(endpoint.url, model="tinny").identity()


@pytest.mark.parametrize(
    "models",
    [
        Reply({"detail": "Not Found"}, 404),
        {"data": []},
        {"data": [{"id": "org/cached", "owned_by": "org"}, {"id": "plain", "owned_by": ""}]},  # `transformers serve`
    ],
)
def test_a_server_without_a_list_of_what_it_serves(models, caplog):
    with Endpoint(models=models) as endpoint:
        assert backend(endpoint.url).identity() == {"model": "tiny"}
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("models", "match"),
    [
        (
            Reply({"error": {"message": f"no {KEY}"}}, 401),
            r"401 no \*\*\*. Set the environment variable OPENAI_API_KEY",
        ),
        (Reply(b"<html>", headers={"Content-Type": "text/html"}), "not an OpenAI-compatible endpoint.*<html>.*/v1"),
        ([1, 2], "not an OpenAI-compatible endpoint"),
        (Reply({}, 503), "503"),
    ],
)
def test_an_endpoint_that_refuses_at_the_start(models, match):
    with Endpoint(models=models) as endpoint, pytest.raises(BackendError, match=match) as error:
        backend(endpoint.url, max_retries=0).identity()
    assert KEY not in str(error.value)


def test_open_files(monkeypatch):
    resource = pytest.importorskip("resource")
    limits, asked = (256, 4096), []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)

    def setrlimit(kind, wanted):
        asked.append(wanted)
        if wanted[0] > wanted[1] != resource.RLIM_INFINITY:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    allow_open_files(64)
    assert not asked
    allow_open_files(1024)
    assert asked == [(1152, 4096)]
    allow_open_files(4000)  # fewer spare ones
    assert asked[1:] == [(4096, 4096)]
    with pytest.raises(ValueError, match=r"`concurrency` is 8192, but this process may open 4096 files only"):
        allow_open_files(8192)


def test_an_address_where_nothing_listens():
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(BackendError, match=f"{url} cannot be reached: Connect.*Is the server up"):
        backend(url, max_retries=0).identity()


def test_the_key_is_the_environment_s_unless_given_and_is_not_shown(monkeypatch):
    settings = ServerSettings("http://localhost:8000/v1", "tiny", api_key=KEY)
    assert KEY not in repr(settings)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment\n")
    with Endpoint() as endpoint:
        backend(endpoint.url, api_key=None).identity()
        monkeypatch.delenv("OPENAI_API_KEY")
        backend(endpoint.url, api_key=None).identity()
    assert endpoint.keys == ["Bearer sk-environment", "Bearer none"]
    with pytest.raises(ValueError, match="cannot hold") as error:
        backend(endpoint.url, api_key="sk-sécret")
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "http://host:port/v1"},
        {"base_url": "http://user:pass@host/v1"},
        {"base_url": None},
        {"model": ""},
        {"concurrency": 0},
        {"concurrency": True},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"request_timeout": 0},
        {"connect_timeout": float("inf")},
        {"give_up_after": 0},
        {"backoff": -1},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must") as error:
        ServerSettings(**({"base_url": "http://localhost/v1", "model": "tiny"} | wrong))
    assert "pass" not in str(error.value).replace("password", "")


def test_a_key_in_the_address_is_sent_and_not_shown(caplog):
    """The client itself would put its paths behind the query."""
    secret = "abc%2Fdef-0123"
    with Endpoint() as endpoint:
        settings = ServerSettings(f"{endpoint.url}?api_key={secret}", "tiny", api_key=KEY)
        assert "0123" not in repr(settings)
        assert ServerBackend(settings).identity()["model"] == "tiny"
        run(settings.base_url, requests(2))
    assert {path for path, _ in endpoint.requests} == {f"/v1/completions?api_key={secret}"}

    def refuse(body, attempt):
        return Reply({"error": {"message": "no abc/def-0123 \x1b[31m here: abc%2Fdef-0123"}}, 400)

    with Endpoint(refuse) as endpoint, pytest.raises(BackendError, match="refuses: 400 no") as error:
        run(f"{endpoint.url}?api_key={secret}", requests(1))
    assert "0123" not in str(error.value)
    assert r"*** \x1b[31m here: ***" in str(error.value)
    with pytest.raises(BackendError, match=r"/v1\?api_key=\*\*\* cannot be reached") as error:
        backend(f"http://127.0.0.1:1/v1?api_key={secret}", max_retries=0).identity()
    assert "0123" not in str(error.value) + caplog.text
    with pytest.raises(ValueError, match="`base_url` must look like") as error:
        ServerSettings(f"host/v1?api_key={secret}", "tiny")
    assert "0123" not in str(error.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install 'trl-credit\[eval\]'"):
        backend("http://localhost/v1")


# --- several ------------------------------------------------------------------------------------------------------------


def test_the_endpoint_with_the_fewest_requests_gets_the_next():
    """One that holds the three that it got at first gets no other."""
    rest = threading.Event()

    def slow(body, attempt):
        rest.wait(60)
        return answer()

    def fast(body, attempt):
        if len(second.requests) == 57:
            rest.set()
        return answer()

    with Endpoint(slow) as first, Endpoint(fast) as second:
        assert len(run([first.url, second.url], requests(60), concurrency=6, request_timeout=100.0)) == 60
    assert len(first.requests) == first.busiest == 3
    assert len(second.requests) == 57
    assert second.busiest <= 3


def test_one_of_several_dies():
    """What it owed goes to the others at once: a wait would take a quarter of an hour here."""

    def script(body, attempt):
        if len(dying.requests) <= 10:
            return answer()
        dying.die()

    made = Made()
    with Endpoint(script) as dying, Endpoint() as other:
        several = backend([dying.url, other.url], concurrency=8, backoff=1000.0)
        several.generate(requests(100), SAMPLING, made)
    assert len(made) == 100
    assert 10 < len(dying.requests) <= 10 + 8
    assert len(other.requests) == 90


def test_one_of_several_comes_back(monkeypatch):
    """It gets one request at a time until it answers."""
    monkeypatch.setattr("trl_credit.evaluation.backends.endpoints._LONGEST_WAIT", 0.02)
    back = threading.Event()

    def script(body, attempt):
        if back.is_set():
            return answer()
        if len(failing.requests) > 2:  # which it got at first
            failing.worst = max(failing.worst, failing.busy)
            time.sleep(0.02)
        return Reply({}, 503)

    def steady(body, attempt):
        time.sleep(0.005)
        if len(other.requests) >= 60:
            back.set()
        return answer()

    with Endpoint(script) as failing, Endpoint(steady) as other:
        failing.worst = 0
        made = run([failing.url, other.url], requests(300), concurrency=4)
    assert len(made) == 300
    before = len(failing.requests) + len(other.requests) - 300
    assert before >= 3  # failures
    assert len(failing.requests) - before >= 10
    assert failing.worst == 1
    assert failing.looks >= before - 2


def test_a_success_ends_the_rest():
    """Or the next failure, within what was left of the rest, would not count."""
    endpoint = backend("http://localhost/v1", backoff=1000.0)._endpoints[0]
    endpoint.rest()
    assert not endpoint.is_available()
    endpoint.rest()  # of one that was in flight at the same time
    assert endpoint.failures == 1
    endpoint.recover()
    assert endpoint.is_available()
    endpoint.rest()
    assert not endpoint.is_available()
    assert endpoint.failures == 1


def test_a_machine_that_went_silent(monkeypatch, caplog):
    """Without power or network it closes no connection: what it owes goes to the others long before `request_timeout`, and
    it gets no other sample while it says nothing."""
    for name, seconds in (("server._WATCHED", 0.05), ("endpoints._PATIENCE", 0.1), ("endpoints._LONGEST_WAIT", 0.02)):
        monkeypatch.setattr(f"trl_credit.evaluation.backends.{name}", seconds)

    def script(body, attempt):
        if len(silent.requests) <= 5:
            return answer()
        silent.is_silent = True
        silent.hang()

    def slow(body, attempt):
        time.sleep(0.01)
        return answer()

    with Endpoint(script) as silent, Endpoint(slow) as other:
        assert len(run([silent.url, other.url], requests(200), concurrency=4, request_timeout=1000.0)) == 200
        assert silent.looks > 3  # also those in place of a sample
    assert 5 < len(silent.requests) <= 5 + 4
    assert len(other.requests) == 195
    assert f"{silent.url} no longer answers" in caplog.text


def test_a_busy_machine_that_answers_is_left_alone(monkeypatch):
    monkeypatch.setattr("trl_credit.evaluation.backends.server._WATCHED", 0.01)
    looks = 0

    def script(body, attempt):
        nonlocal looks
        while endpoint.looks < looks + 6:
            time.sleep(0.005)
        looks = endpoint.looks
        return answer()

    with Endpoint(script, models=Reply("no such page", 404)) as endpoint, Endpoint() as other:
        assert len(run([endpoint.url, other.url], requests(2), concurrency=2)) == 2
    assert len(endpoint.requests) == len(other.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_one_of_several_that_refuses(status, caplog):
    """It ends the run only if the others refuse, too."""
    caplog.set_level(logging.WARNING, logger="trl_credit")

    def refuse(body, attempt):
        return Reply({"error": {"message": "not here"}}, status)

    with Endpoint(refuse) as wrong, Endpoint() as right:
        assert len(run([wrong.url, right.url], requests(40), concurrency=4)) == 40
    assert caplog.text.count(f"{wrong.url} refuses: {status} not here") == 1
    with (
        Endpoint(refuse) as wrong,
        Endpoint(refuse) as other,
        pytest.raises(BackendError, match=f"refuses: {status} not here.*What is finished is kept"),
    ):
        run([wrong.url, other.url], requests(40))


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"root": "org/other"}, "serves another model than the others: .*org/other"),
        ({"id": "else"}, "does not serve 'tiny'"),
        ({"max_model_len": 4095}, "has a context of 4095 tokens, and this run needs 4096"),
    ],
)
def test_an_absent_address_is_checked_when_it_comes(monkeypatch, caplog, card, said):
    caplog.set_level(logging.WARNING, logger="trl_credit")
    monkeypatch.setattr("trl_credit.evaluation.backends.endpoints._LONGEST_WAIT", 0.001)
    with Endpoint(models=Reply({}, 503)) as late, Endpoint(tokenize=words_of) as endpoint:
        two = backend([late.url, endpoint.url], max_retries=0)
        two.prepare(requests(1), SamplingSettings(1.0, max_tokens=5000))
        late.models = {"data": [CARD | card]}
        made = Made()
        two.generate(requests(40), SAMPLING, made)
        assert len(made) == 40
        assert late.requests == []
        assert len(re.findall(said, caplog.text)) == 1
        late.models = {"data": [CARD]}
        time.sleep(0.01)
        two.generate(requests(40), SAMPLING, Made())
    assert late.requests


def test_what_one_address_does_not_know_the_others_get():
    with Endpoint(strict) as old, Endpoint() as new:
        two = backend([old.url, new.url], concurrency=4)
        assert two.notes() == []
        two.generate(requests(40), SAMPLING, Made())
    assert all("min_p" in body for _, body in new.requests)
    assert "min_p" not in old.requests[-1][1]
    assert len(two.notes()) == 1


@pytest.mark.parametrize("other", ["http://host/v1/?b=2&a=1", "http://host/v1?a=1&b=2"])
def test_an_address_that_is_named_twice(other):
    with pytest.raises(ValueError, match=r"`base_url` must name each address once, got http://host/v1") as error:
        ServerSettings(["http://host/v1?a=1&b=2", "http://host/v1?a=1&b=3", other], "tiny")
    assert "b=2" not in str(error.value)


def test_addresses_that_differ_in_their_query_only():
    """Each has its own answer at the start."""
    with Endpoint() as endpoint:
        one, two = (f"{endpoint.url}?key=secret-{i}" for i in (1, 2))
        served = backend([one, two])
        assert served.identity()["root"] == "org/tiny"
    assert endpoint.looks == 2


def test_all_of_several_die():
    def script(body, attempt):
        first.die()
        second.die()

    with (
        Endpoint(script) as first,
        Endpoint(script) as second,
        pytest.raises(BackendError, match="the last 8 requests failed") as error,
    ):
        run([first.url, second.url], requests(2000), concurrency=4)
    assert f"{first.url}, {second.url} is not responding" in str(error.value)


def test_several_at_the_start(caplog):
    secret = "abcdef-0123"
    with Endpoint() as endpoint, Endpoint(models={"data": [CARD | {"root": "org/other"}]}) as other:
        two = backend([f"http://127.0.0.1:1/v1?key={secret}", endpoint.url], max_retries=0)
        assert two.identity() == backend(endpoint.url).identity()
        assert "127.0.0.1:1/v1?key=*** cannot be reached" in caplog.text
        assert "get its share until it answers" in caplog.text
        made = Made()
        two.generate(requests(20), SAMPLING, made)
        assert len(made) == 20
        with pytest.raises(BackendError, match=r"do not serve the same model as 'tiny': .*org/tiny.*org/other"):
            backend([endpoint.url, other.url]).identity()
        other.models = {"data": [CARD | {"max_model_len": 2048}]}
        assert backend([endpoint.url, other.url]).identity()["root"] == "org/tiny"
        with pytest.raises(BackendError, match="does not serve 'tinny'"):
            backend([endpoint.url, other.url], model="tinny").identity()
    with pytest.raises(
        BackendError, match=r"(?s)127.0.0.1:1/v1\?key=\*\*\* cannot be reached.*0.1:2/v1 cannot be reached"
    ):
        backend([f"http://127.0.0.1:1/v1?key={secret}", "http://127.0.0.1:2/v1"], max_retries=0).identity()
    assert "0123" not in caplog.text
    for wrong in ([], ["http://localhost/v1", "localhost:8000"]):
        with pytest.raises(ValueError, match="`base_url` must look like"):
            ServerSettings(wrong, "tiny")
    with pytest.raises(ValueError, match="separate several addresses by spaces"):
        ServerSettings("http://a/v1,http://b/v1", "tiny")


# --- the context ----------------------------------------------------------------------------------------------------


def words_of(body):
    """As many tokens as words."""
    text = body["prompt"] if "prompt" in body else " ".join(message["content"] for message in body["messages"])
    return {"tokens": list(range(len(text.split())))}


@pytest.mark.parametrize("chat", [True, False])
def test_max_tokens_is_cut_to_the_server_s_context(chat, caplog):
    texts = ["a b c", "a b c d e", "a"]
    prompts = [({"role": "user", "content": text},) if chat else text for text in texts]
    todo = [Request("task", number, index, 1, prompt) for number, prompt in enumerate(prompts) for index in range(4)]
    sampling = SamplingSettings(1.0, max_tokens=5000)
    with Endpoint(tokenize=words_of) as endpoint:
        assert backend(endpoint.url).prepare(todo, SAMPLING) == SAMPLING
        assert not caplog.records
        cut = backend(endpoint.url, chat_template_kwargs={"x": 1}).prepare(todo, sampling)
    assert cut.max_tokens == 4096 - 5
    assert [record.message.partition(":")[0] for record in caplog.records] == ["`max_tokens` is cut from 5000 to 4091"]
    assert len(endpoint.counted) == 2 * 3  # once for each prompt
    body = endpoint.counted[-1]
    assert body["model"] == "tiny"
    assert body.get("chat_template_kwargs") == ({"x": 1} if chat else None)
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    with Endpoint(tokenize=words_of) as endpoint, pytest.raises(ValueError, match="nothing is left for an answer"):
        backend(endpoint.url).prepare([Request("task", 0, 0, 1, "a " * 4096)], sampling)


def test_an_adapter_has_the_context_of_its_base_model():
    """vLLM's entry of an adapter states none."""
    mine = {"id": "mine", "root": "folder", "parent": "tiny", "max_model_len": None}
    with Endpoint(models={"data": [CARD, mine]}, tokenize=words_of) as endpoint:
        served = backend(endpoint.url, model="mine")
        assert served.prepare(requests(1), SamplingSettings(1.0, max_tokens=5000)).max_tokens == 4095
        assert served.identity() == {"model": "mine", "root": "folder", "parent": "tiny"}


def test_the_context_that_cut_max_tokens_is_not_part_of_a_run():
    sampling, todo = SamplingSettings(1.0, max_tokens=50), requests(4)
    shorter = {"data": [CARD | {"max_model_len": 2048}]}
    with Endpoint(tokenize=words_of) as first, Endpoint(models=shorter, tokenize=words_of) as second:
        found = []
        for urls in (first.url, second.url, [first.url, second.url]):
            served = backend(urls)
            assert served.prepare(todo, sampling) == sampling
            found.append(served.identity())
        assert found == [{"model": "tiny", "root": "org/tiny"}] * 3
        assert served.upgraded(found[0] | {"max_model_len": 4096}) == found[0]  # of an earlier release
        cut = backend([first.url, second.url]).prepare(todo, SamplingSettings(1.0, max_tokens=5000))
        assert cut.max_tokens == 2047
    with Endpoint() as first:
        served = backend(first.url)
        served.prepare(todo, sampling)
        assert served.identity()["max_model_len"] == 4096
        assert served.upgraded(served.identity()) == served.identity()


FAILURES = {
    "503": (lambda body: Reply({}, 503, {"retry-after-ms": "1"})),
    "429": (lambda body: Reply({}, 429, {"retry-after-ms": "1"})),
    "no answer": (lambda body: None),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_cannot_count_now(failure, monkeypatch):
    """It is not one that does not count tokens: another address is asked, and where there is none the run ends."""
    if failure == "no answer":
        monkeypatch.setattr("trl_credit.evaluation.backends.endpoints._PATIENCE", 2.0)
    todo = [Request("task", i, 0, 1, "a " * (i + 1)) for i in range(100)]
    sampling, failed = SamplingSettings(1.0, max_tokens=5000), []

    def fail(body):
        if len(body["prompt"]) == 2:
            return {"tokens": [1]}
        failed.append(body)
        return FAILURES[failure](body) or failing.hang()

    with Endpoint(tokenize=fail) as failing, Endpoint(tokenize=words_of) as other:
        assert backend([failing.url, other.url], max_retries=0).prepare(todo, sampling).max_tokens == 4096 - 100
        assert len(failed) <= 64  # the rest is not asked for
        with pytest.raises(BackendError, match=f"No server counts the prompts' tokens.*{failing.url}"):
            backend(failing.url, max_retries=0).prepare(todo, sampling)


def test_token_ids_are_counted_without_the_server():
    with Endpoint() as endpoint:
        cut = backend(endpoint.url).prepare([Request("task", 0, 0, 1, (5, 6))], SamplingSettings(1.0, max_tokens=5000))
    assert cut.max_tokens == 4094
    assert endpoint.counted == []


@pytest.mark.parametrize(
    "tokenize",
    [None, lambda body: {"count": 3}, lambda body: [1], lambda body: {"tokens": 3}, lambda body: Reply(b"<")],
)
def test_a_server_that_does_not_count_tokens(tokenize, caplog):
    caplog.set_level(logging.WARNING, logger="trl_credit")
    sampling = SamplingSettings(1.0, max_tokens=4096)
    with Endpoint(tokenize=tokenize) as endpoint:
        assert backend(endpoint.url).prepare(requests(9), sampling) == sampling
        assert len(caplog.records) == 1
        assert "`max_tokens` is 4096, and the server's context 4096: it cannot be cut" in caplog.text
        assert backend(endpoint.url).prepare(requests(9), SAMPLING) == SAMPLING
        assert len(caplog.records) == 1
    assert len(endpoint.counted) == 2


def test_a_server_that_states_no_context():
    sampling = SamplingSettings(1.0, max_tokens=50_000)
    with Endpoint(models={"data": [{"id": "tiny", "owned_by": "x"}]}) as endpoint:
        assert backend(endpoint.url).prepare(requests(9), sampling) == sampling
    assert endpoint.counted == []


# --- a real one -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_against_transformers_serve(tiny_model, tmp_path):
    pytest.importorskip("uvicorn")
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # Not a Qwen: from those `transformers serve` expects Qwen's own chat template, else it answers prompt and all
    name, tokenizer = str(tmp_path / "model"), AutoTokenizer.from_pretrained(tiny_model)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **ends)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # sharper than at its initialisation: no near ties
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)

    port = free_port()
    command = [Path(sys.executable).with_name("transformers"), "serve", name]
    (tmp_path / "hub").mkdir()  # it lists the models of the hub's cache
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 180
        while True:
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, (tmp_path / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.2)
        messages = [({"role": "user", "content": text},) for text in ("1+1", "12+7", "a")]
        todo = [Request("t", i, 0, i, prompt) for i, prompt in enumerate([*messages, "1+1=", "abc", "12+30="])]
        sampling = SamplingSettings(temperature=0, max_tokens=24)
        settings = ServerSettings(f"http://127.0.0.1:{port}/v1", name, concurrency=3, request_timeout=60)
        made = Made()
        opened = ServerBackend(settings)
        assert opened.identity() == {"model": name}
        opened.generate(todo, sampling, made)
        with pytest.raises(BackendError, match="refuses: 400 Server is pinned to"):
            run(settings.base_url, todo, sampling, model="other")
        with pytest.raises(BackendError, match=r"422 Unexpected fields.*top_k"):
            run(settings.base_url, todo, SamplingSettings(0, top_k=5), model=name)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(20)

    for request in todo:
        text = request.prompt
        if not isinstance(text, str):
            text = tokenizer.apply_chat_template(list(text), add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            new = model.generate(ids, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
        finish = "length" if len(new) == 24 else "stop"
        expected = Generation(tokenizer.decode(new, skip_special_tokens=True), len(new), finish)
        assert made[request.seed] == expected
    assert len({generation.text for generation in made.values()}) > 3
