"""The `server` backend: completions from any OpenAI-compatible endpoint, such as `vllm serve` or SGLang, on one machine
or on many, by their addresses or behind a load balancer."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..._util.text import HIDDEN, nearest, redact_url, safe, secrets_of, split_url
from .base import Backend, BackendError, Emit, Generation, Request, SamplingSettings
from .prompts import Rendered, fit, limit_of


logger = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0  # seconds between two attempts; a longer `Retry-After` of the server is honoured up to twice that
_KEPT = "The finished samples are kept: run the same command again to make the missing ones."
_BEYOND = ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs")  # not part of OpenAI's API


@dataclass(frozen=True)
class ServerSettings:
    """An endpoint and how patiently to call it.

    Args:
        base_url: Address of the API, such as `http://localhost:8000/v1`, or several, of servers of the same model: each
            request goes to the one with the fewest in flight, and if one dies, what it owed to the others. A query
            (`?api-version=2025-01`) is sent with every request. Messages do not show its values.
        model: Name of the served model. With `vllm serve --lora-modules name=path`, an adapter's name.
        api_key: By default the environment variable `OPENAI_API_KEY`, else "none".
        concurrency: Maximum number of requests in flight, at all addresses together. For throughput, as many as all
            replicas can batch.
        max_retries: Retries of a request after a 408, 409, 425, 429 or 5xx, a lost connection, a timeout or a malformed
            answer. The waits double, so 6 retries outlast an outage of about a minute. Other addresses are tried first,
            at once, which is no retry.
        request_timeout: Seconds for one attempt, from sending to the last byte of the answer. Answers are not streamed,
            so a load balancer's idle timeout must be at least as long.
        connect_timeout: Seconds to connect.
        give_up_after: The run ends, considering the endpoint dead, once this many requests in a row have used up their
            retries. By default `concurrency`, but at least 8.
        backoff: Seconds before the first retry. Random jitter takes off up to half.

    Raises:
        ValueError: A value is out of range.
    """

    base_url: str | Sequence[str] = field(repr=False)
    model: str
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 64
    max_retries: int = 6
    request_timeout: float = 3600.0
    connect_timeout: float = 10.0
    give_up_after: int | None = None
    backoff: float = 1.0

    def __post_init__(self):
        for url in self.addresses or (None,):
            self._check_address(url)
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f"`model` must be the name of a served model, got {self.model!r}.")
        for name, kind, least in (
            ("concurrency", int, 1),
            ("max_retries", int, 0),
            ("give_up_after", int, 1),
            ("request_timeout", (int, float), 0),
            ("connect_timeout", (int, float), 0),
            ("backoff", (int, float), 0),
        ):
            value = getattr(self, name)
            if name == "give_up_after" and value is None:
                continue
            timeout = name.endswith("timeout")
            if (
                isinstance(value, bool)
                or not isinstance(value, kind)
                or not least <= value < float("inf")
                or (timeout and not value)
            ):
                rule = "a positive number" if timeout else f"at least {least}"
                raise ValueError(f"`{name}` must be {rule}, got {value!r}.")

    @staticmethod
    def _check_address(address: Any) -> None:
        if "@" in str(address):  # messages show the address
            raise ValueError("`base_url` must not hold a user or a password: set OPENAI_API_KEY.")
        try:
            url = urlsplit(address)
            valid = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except (ValueError, TypeError, AttributeError):  # for example, the port is not a number
            valid = False
        if not valid:
            shown = redact_url(address) if isinstance(address, str) else address
            raise ValueError(f"`base_url` must look like http://localhost:8000/v1, got {shown!r}.")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The base URLs, one or several."""
        several = isinstance(self.base_url, list | tuple)
        return tuple(self.base_url) if several else (self.base_url,)

    @property
    def address(self) -> str:
        """The base URLs without their secrets, for messages."""
        return ", ".join(map(redact_url, self.addresses))


class _TransientError(Exception):
    """An attempt failed in a way that a retry may fix. `wait` is the seconds that the server asked to wait."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class _ExhaustedError(Exception):
    """A request used up its retries."""


class _AbsentError(BackendError):
    """An endpoint does not answer at the start. Others may."""


class _Endpoint:
    """One address, and how it fares. After a failure it rests, and then gets one request at a time until one succeeds."""

    def __init__(self, base_url: str):
        self.address = redact_url(base_url)
        # The client would append its paths after the query
        self.url, self.query = split_url(base_url)
        self.context: int | None = None
        self.client = None  # within a call of `generate`
        self.busy = self.failures = 0
        self.rests_until = 0.0

    def is_available(self) -> bool:
        return not self.failures or (not self.busy and time.monotonic() >= self.rests_until)

    def load(self) -> tuple[int, int]:
        """Orders endpoints: those available by their requests in flight, then the others by their failures."""
        return (0, self.busy) if self.is_available() else (self.failures, self.busy)

    def rest(self, backoff: float, asked: float) -> None:
        """Counts a failure, but of those that were in flight together only the first."""
        now = time.monotonic()
        if now >= self.rests_until:
            self.rests_until = now + _pause(backoff, self.failures, asked)
            self.failures += 1


def _pause(backoff: float, failures: int, asked: float) -> float:
    """Seconds to wait after so many earlier failures. `asked` is what the server asked for."""
    wait = min(backoff * 2 ** min(failures, 30), _LONGEST_WAIT) * random.uniform(0.5, 1)
    return max(wait, min(asked, 2 * _LONGEST_WAIT))


class ServerBackend(Backend):
    """Generates at an OpenAI-compatible endpoint: messages at `/chat/completions`, plain text and token ids at
    `/completions`. For token ids, the sampled ids are asked for, too (`return_token_ids`, which vLLM knows).

    Requests carry `temperature`, `top_p`, `max_tokens`, `seed` and `stop`, which are part of OpenAI's API, and `top_k`,
    `min_p` and `repetition_penalty`, which are not. vLLM and SGLang accept those, and default to the model's
    `generation_config.json` if they are absent. They are therefore sent even at neutral values, until a server rejects
    one by name; from then on only those that were set are sent. `chat_template_kwargs` are sent only if set.

    A sample is reproducible if the server honours its seed. vLLM does, up to rounding that depends on the batch
    (`VLLM_BATCH_INVARIANT=1` removes that). SGLang does with `--enable-deterministic-inference`. `transformers serve`
    seeds the whole process, so it is reproducible only with `concurrency=1`. It samples only if the model's
    `generation_config.json` sets `do_sample`, and rejects `top_k`, `min_p` and `repetition_penalty`.

    A reasoning parser's `reasoning_content` or `reasoning` is put in front of the text in `<think>` tags. The closing
    tag is left out if the completion was cut within the thought.

    Args:
        settings: The endpoint.
        chat_template_kwargs: Arguments of the chat template, such as `{"enable_thinking": False}`.

    Raises:
        ValueError: The `openai` package is missing, or the key has characters that an HTTP header cannot hold.
    """

    name = "server"

    def __init__(self, settings: ServerSettings, chat_template_kwargs: dict[str, Any] | None = None):
        try:
            import openai
        except ImportError:
            raise ValueError("The server backend needs the `openai` package: pip install 'trl-credit[eval]'") from None
        self._openai = openai
        self.settings = settings
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._key = (settings.api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or "none"
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError("The API key (OPENAI_API_KEY) has characters that an HTTP header cannot hold.")
        self._endpoints = [_Endpoint(url) for url in settings.addresses]
        self._secrets = [secret for url in settings.addresses for secret in secrets_of(url)]
        self._secrets += [self._key] if self._key != "none" else []
        self._identity = None
        self._send_neutral = True  # also send the fields that are not part of OpenAI's API at neutral values

    def identity(self) -> dict[str, Any]:
        """The model's name and what the endpoint reports of it. Leaves out the address, so that another address or
        number of replicas may continue a run.

        Raises:
            BackendError: No endpoint can be reached; one refuses the key, does not serve the model, or serves another one
                than the others do.
        """
        if self._identity is None:
            self._identity = {"model": self.settings.model, **self._described()}
            if self.chat_template_kwargs:
                self._identity["chat_template_kwargs"] = self.chat_template_kwargs
        return dict(self._identity)

    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        """Generates in an event loop of its own. The calling thread must not be running one: from a notebook, use
        `await asyncio.to_thread(...)`. An exception from `emit` ends the run and cancels requests in flight.

        Raises:
            BackendError: The endpoint refuses a request (4xx), which ends the run at once; the endpoint is dead; or
                some requests used up their retries (raised after all others are done).
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._generate(requests, sampling, emit))
        raise BackendError(
            "The server backend cannot run within an event loop, as of a notebook: use `await asyncio.to_thread(...)`."
        )

    def notes(self) -> list[str]:
        return [] if self._send_neutral else ["the server does not know top_k, min_p, repetition_penalty: left out"]

    def close(self) -> None:
        """Does nothing: connections are closed at the end of every call."""

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        """Cuts `max_tokens` to the context that the endpoint states, if it counts tokens (vLLM's `/tokenize`) or the
        prompts are token ids."""
        self.identity()
        context = min((one.context for one in self._endpoints if one.context is not None), default=None)
        if context is None:
            return sampling
        first = {json.dumps(request.prompt): request for request in requests}  # samples of a problem share their prompt
        ids = self._tokenized([request.prompt for request in first.values()])
        if ids is None:
            if sampling.max_tokens >= context:
                logger.warning(
                    "`max_tokens` is %d, and the server's context %d: it cannot be cut to what the prompts leave, because "
                    "the server does not count tokens (`/tokenize`). Requests that do not fit are refused.",
                    sampling.max_tokens,
                    context,
                )
            return sampling
        return fit(sampling, [Rendered(r, i) for r, i in zip(first.values(), ids, strict=True)], context)

    def _tokenized(self, prompts: Sequence[Any]) -> list[list[int]] | None:
        """The prompts' token ids, counted by the first endpoint that answers; `None` if it does not count them."""
        endpoint = min(self._endpoints, key=_Endpoint.load)
        with self._client(endpoint) as client:

            def ids_of(prompt: Any) -> list[int]:
                if not isinstance(prompt, str) and isinstance(prompt[0], int):
                    return list(prompt)
                body = {"model": self.settings.model}
                if isinstance(prompt, str):
                    body["prompt"] = prompt
                else:
                    body["messages"] = [dict(message) for message in prompt]
                    body |= {"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {}
                address = endpoint.url.rstrip("/").removesuffix("/v1") + "/tokenize"  # not part of OpenAI's API
                ids = json.loads(client.post(address, cast_to=str, body=body))["tokens"]
                if not isinstance(ids, list):
                    raise TypeError("the token ids are no list")
                return ids

            try:
                with ThreadPoolExecutor(min(self.settings.concurrency, 32)) as pool:
                    return [*map(ids_of, prompts[:1]), *pool.map(ids_of, prompts[1:])]
            except (self._openai.APIError, ValueError, TypeError, KeyError) as error:
                reason = self._reason(error) if isinstance(error, self._openai.APIError) else type(error).__name__
                logger.info("%s does not count tokens: %s", endpoint.address, reason)
                return None

    def _client(self, endpoint: _Endpoint) -> Any:
        """A client for questions before the first sample."""
        settings, openai = self.settings, self._openai
        return openai.OpenAI(
            api_key=self._key,
            base_url=endpoint.url,
            default_query=endpoint.query,
            timeout=openai.Timeout(max(30.0, settings.connect_timeout), connect=settings.connect_timeout),
            max_retries=min(2, settings.max_retries),
        )

    def _described(self) -> dict[str, Any]:
        """What the endpoints report of the model. Those that do not answer are left for later, unless none does."""
        found, absent = {}, []
        for endpoint in self._endpoints:
            try:
                found[endpoint.address] = self._card(endpoint)
            except _AbsentError as error:
                absent.append((endpoint, error))
        if not found:
            raise BackendError(str(absent[0][1]))
        for endpoint, error in absent:
            endpoint.rest(self.settings.backoff, 0.0)
            logger.warning("%s The other addresses get its share until it answers.", error)
        known = {address: card for address, card in found.items() if card}
        if any(card != next(iter(known.values())) for card in known.values()):
            cards = "; ".join(f"{address}: {self._shown(json.dumps(card))}" for address, card in known.items())
            raise BackendError(
                f"The addresses of `base_url` do not serve the same model as {self.settings.model!r}: {cards}. Serve one "
                "model with one context length at all of them."
            )
        return next(iter(known.values()), {})

    def _card(self, endpoint: _Endpoint) -> dict[str, Any]:
        """Looks up the model's entry in an endpoint's list of models, and checks that it is served."""
        settings, openai = self.settings, self._openai
        try:
            with self._client(endpoint) as client:
                content = client.models.with_raw_response.list().content
        except openai.APIStatusError as error:
            if error.status_code not in (404, 405, 500, 501):
                kind = _AbsentError if error.status_code > 501 else BackendError
                raise kind(self._refusal(endpoint, error)) from None
            logger.warning(
                "%s/models answered %d: only the first request will show that the model is served.",
                redact_url(endpoint.url.rstrip("/")),
                error.status_code,
            )
            return {}
        except openai.APIConnectionError as error:
            raise _AbsentError(
                f"{endpoint.address} cannot be reached: {self._reason(error)}. Is the server up (`vllm serve` takes "
                "minutes to load a model), and is this its address, with /v1 at the end?"
            ) from None
        try:
            cards = {str(card["id"]): card for card in json.loads(content)["data"]}
        except (ValueError, TypeError, KeyError):
            raise BackendError(
                f"{endpoint.address} is not an OpenAI-compatible endpoint: its list of models is {self._shown(content)}. "
                "Does the address end with /v1?"
            ) from None
        card = cards.get(settings.model)
        # `transformers serve` lists the hub's cache, which may lack what it serves, and refuses unknown names itself
        if card is None and any(c.get("owned_by") != "".join(i.split("/", 1)[:-1]) for i, c in cards.items()):
            hint = nearest(settings.model, cards)
            raise BackendError(f"{endpoint.address} does not serve {settings.model!r}. {hint}")
        if card is None:
            card = {}
            logger.warning("%s does not list %r; trying anyway.", endpoint.address, settings.model)
        # vLLM states an adapter's context in its base model's entry only
        for found in (card, cards.get(str(card.get("parent")), {})):
            if endpoint.context is None and isinstance(found.get("max_model_len"), int):
                endpoint.context = found["max_model_len"]
        known = {key: card.get(key) for key in ("root", "parent", "max_model_len")}
        return {key: value for key, value in known.items() if isinstance(value, (str, int))}

    async def _generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        settings, openai = self.settings, self._openai
        give_up_after = settings.give_up_after or max(8, settings.concurrency)
        todo, running = iter(requests), {}
        failed = in_a_row = 0
        # The client's own retries do not cover malformed answers, and it allows only 1000 connections
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=None)
        async with contextlib.AsyncExitStack() as clients:
            for endpoint in self._endpoints:
                endpoint.client = await clients.enter_async_context(
                    openai.AsyncOpenAI(
                        api_key=self._key,
                        base_url=endpoint.url,
                        default_query=endpoint.query,
                        timeout=openai.Timeout(None, connect=settings.connect_timeout),
                        max_retries=0,
                        http_client=openai.DefaultAsyncHttpxClient(limits=limits),
                    )
                )
            try:
                while True:
                    for request in itertools.islice(todo, settings.concurrency - len(running)):
                        running[asyncio.create_task(self._complete(request, sampling))] = request
                    if not running:
                        break
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    fatal = None
                    for task in done:
                        request, error = running.pop(task), task.exception()
                        if error is None:
                            emit(request, task.result())
                            in_a_row = 0
                        elif isinstance(error, _ExhaustedError):
                            failed, in_a_row, last = failed + 1, in_a_row + 1, error
                        else:  # raised later, once the tasks that finished at the same time are saved
                            fatal = error
                    if fatal is not None:
                        raise fatal
                    if in_a_row >= give_up_after:
                        raise BackendError(
                            f"{settings.address} is not responding: the last {in_a_row} requests failed, {last}. "
                            f"Restart it. {_KEPT}"
                        )
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        if failed:
            raise BackendError(f"{failed} of {len(requests)} samples could not be made, the last {last}. {_KEPT}")

    async def _complete(self, request: Request, sampling: SamplingSettings) -> Generation:
        """Generates one completion, with retries. Before each wait, every address that is available has its turn."""
        settings, attempts = self.settings, 0
        for waits in itertools.count():
            left = list(self._endpoints)
            while left == self._endpoints or any(endpoint.is_available() for endpoint in left):
                endpoint = min(left, key=_Endpoint.load)
                left.remove(endpoint)
                attempts += 1
                endpoint.busy += 1
                try:
                    made = await asyncio.wait_for(self._attempt(endpoint, request, sampling), settings.request_timeout)
                except TimeoutError:
                    failure = _TransientError(f"No answer in {settings.request_timeout:g} s (`request_timeout`)")
                except _TransientError as error:
                    failure = error
                else:
                    endpoint.failures = 0
                    return made
                finally:
                    endpoint.busy -= 1
                endpoint.rest(settings.backoff, failure.wait)
                logger.info("Sample %s failed at %s: %s", request.key, endpoint.address, failure)
            if waits == settings.max_retries:
                raise _ExhaustedError(f"after {attempts} attempts: {failure}")
            await asyncio.sleep(_pause(settings.backoff, waits, failure.wait))

    async def _attempt(self, endpoint: _Endpoint, request: Request, sampling: SamplingSettings) -> Generation:
        openai = self._openai
        fields = {
            "model": self.settings.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": limit_of(request, sampling),
            "seed": request.seed,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
        }
        extra = self._extra(sampling)
        if isinstance(request.prompt, str) or request.has_token_ids:
            api = endpoint.client.completions
            fields["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
            if request.has_token_ids:
                extra["return_token_ids"] = True
        else:
            api = endpoint.client.chat.completions
            fields["messages"] = [dict(message) for message in request.prompt]
            if self.chat_template_kwargs:
                extra["chat_template_kwargs"] = self.chat_template_kwargs
        try:
            answer = await api.with_raw_response.create(**fields, extra_body=extra)
        except openai.APIStatusError as error:
            if error.status_code in (408, 409, 425, 429) or error.status_code >= 500:
                raise _TransientError(self._reason(error), _retry_after(error.response.headers)) from None
            said = self._said(error)
            neutral = (
                set(extra) - set(self._extra(sampling, neutral=False)) - {"chat_template_kwargs", "return_token_ids"}
            )
            if error.status_code in (400, 422) and any(name in said for name in neutral):
                if self._send_neutral:
                    logger.warning(
                        "%s does not know %s: they are left out, and the model's own defaults may hold. It said: %s",
                        endpoint.address,
                        ", ".join(sorted(neutral)),
                        said,
                    )
                self._send_neutral = False
                return await self._attempt(endpoint, request, sampling)
            raise BackendError(f"{self._refusal(endpoint, error)} What is finished is kept.") from None
        except openai.APIConnectionError as error:
            raise _TransientError(self._reason(error)) from None
        try:
            return _generation(json.loads(answer.content))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {self._shown(str(error))}" if str(error) else type(error).__name__
            raise _TransientError(f"Malformed answer ({reason}): {self._shown(answer.content)}") from None

    def _extra(self, sampling: SamplingSettings, neutral: bool | None = None) -> dict[str, Any]:
        """The fields that are not part of OpenAI's API. Neutral values are included only if `neutral`."""
        values = {
            "top_k": (sampling.top_k or -1, -1),  # -1 means all tokens in every version of vLLM and SGLang, 0 does not
            "min_p": (sampling.min_p, 0.0),
            "repetition_penalty": (sampling.repetition_penalty, 1.0),
        }
        keep = self._send_neutral if neutral is None else neutral
        return {name: value for name, (value, none) in values.items() if keep or value != none}

    def _refusal(self, endpoint: _Endpoint, error: Any) -> str:
        """Message for a status that no retry will fix."""
        status, said = error.status_code, self._said(error)
        if status in (401, 403):
            hint = " Set the environment variable OPENAI_API_KEY to a key that it accepts."
        elif status == 404:
            hint = " Does the address end with /v1, and is the model's name right?"
        elif any(
            words in said.lower() for words in ("context length", "context_length", "context window", "max_model_len")
        ):
            hint = " Lower `max_tokens`, or serve the model with a longer context."
        elif named := [name for name in _BEYOND if name in said]:
            hint = f" Leave out {', '.join(f'`{name}`' for name in named)}, or use another server."
        else:
            hint = ""
        return f"{endpoint.address} refuses: {status} {said}.{hint}"

    def _reason(self, error: Any) -> str:
        if isinstance(error, self._openai.APIStatusError):
            return f"{error.status_code} {self._said(error)}"
        cause = error.__cause__ or error  # the client's own message is always "Connection error."
        return f"{type(cause).__name__}: {self._shown(str(cause))}".rstrip(": ")

    def _said(self, error: Any) -> str:
        """Text of a server's error."""
        body = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        return self._shown(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))

    def _shown(self, text: str | bytes) -> str:
        """A server's text for a message: one line, at most 500 characters, without control characters or secrets."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        text = safe(" ".join(text.split())).rstrip(".")
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text if len(text) <= 500 else text[:500] + " ..."


def _retry_after(headers: Any) -> float:
    try:
        seconds = float(headers.get("retry-after", 0))
    except ValueError:  # a date: use our own waits
        return 0.0
    return seconds if seconds > 0 else 0.0


def _generation(answer: dict[str, Any]) -> Generation:
    """Reads the generation from an answer's JSON.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: A part is missing or malformed.
    """
    choice = answer["choices"][0]
    finish = choice["finish_reason"]
    if not isinstance(finish, str) or finish in ("abort", "error"):
        raise ValueError(f"finish_reason is {finish!r}")
    if "message" in choice:
        message = choice["message"]
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        # Servers write null for an empty completion, and omit the field next to reasoning or tool calls
        content = message.get("content") if reasoning or message.get("tool_calls") else message["content"]
        content = "" if content is None else content
    else:
        reasoning, content = "", choice["text"]
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise TypeError("the text is not a string")
    ids = choice.get("token_ids")
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise TypeError("the token ids are no whole numbers")
    if reasoning:
        closed = content or finish != "length"
        content = f"<think>{reasoning}{'</think>' if closed else ''}{content}"
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
        raise ValueError(f"completion_tokens is {tokens!r}")
    # Other reasons, such as a content filter, count as a normal end
    return Generation(
        text=content,
        tokens=tokens,
        finish="length" if finish == "length" else "stop",
        ids=None if ids is None else tuple(ids),
    )
