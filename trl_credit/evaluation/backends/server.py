"""The `server` backend: completions from any OpenAI-compatible endpoint, such as `vllm serve` or SGLang, on one machine
or on many, by their addresses or behind a load balancer."""

import asyncio
import itertools
import json
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..._util.text import redact_url, secrets_of, split_url
from .base import Backend, BackendError, Emit, Generation, Request, SamplingSettings
from .endpoints import Endpoint, RefusedError, TransientError, pause
from .prompts import Rendered, fit


logger = logging.getLogger(__name__)

T = TypeVar("T")

_KEPT = "The finished samples are kept: run the same command again to make the missing ones."
_WATCHED = 10.0  # seconds between two looks at an address that owes answers
_OTHER_FILES = 128  # open ones besides the connections
_MISSED = 3  # looks in a row without an answer, after which it is given up


@dataclass(frozen=True)
class ServerSettings:
    """An endpoint and how patiently to call it.

    Args:
        base_url: Address of the API, such as `http://localhost:8000/v1`, or several, of servers of the same model: each
            request goes to the one with the fewest in flight, and if one dies, what it owed to the others. With several,
            one that owes answers must answer `/models` meanwhile. A query (`?api-version=2025-01`) is sent with every
            request. Messages do not show its values.
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
        seen = set()
        for url in self.addresses:
            address, query = split_url(url)
            key = (address.rstrip("/"), *sorted(query.items()))
            if key in seen:
                raise ValueError(f"`base_url` must name each address once, got {redact_url(url)} twice.")
            seen.add(key)
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
        if ",http" in str(address):
            raise ValueError("`base_url`: separate several addresses by spaces, not by commas.")
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


class _ExhaustedError(Exception):
    """A request used up its retries."""


def allow_open_files(concurrency: int) -> None:
    """Raises this process's limit of open files, of which each request in flight has one, as far as it may.

    Raises:
        ValueError: The connections alone are more than it may have.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    needed, infinite = concurrency + _OTHER_FILES, resource.RLIM_INFINITY
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == infinite or soft >= needed:
        return
    allowed = needed if hard == infinite else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # such as macOS, which has another limit besides
        allowed = soft
    if allowed <= concurrency:
        raise ValueError(
            f"`concurrency` is {concurrency}, but this process may open {allowed} files only (`ulimit -n`). Lower "
            f"`concurrency`, or raise the limit to {needed}."
        )


class ServerBackend(Backend):
    """Generates at an OpenAI-compatible endpoint: messages at `/chat/completions`, plain text and token ids at
    `/completions`. For token ids, the sampled ids are asked for, too (`return_token_ids`, which vLLM knows).

    Requests carry `temperature`, `top_p`, `max_tokens`, `seed` and `stop`, which are part of OpenAI's API, and `top_k`,
    `min_p` and `repetition_penalty`, which are not. vLLM and SGLang accept those, and default to the model's
    `generation_config.json` if they are absent. They are therefore sent even at neutral values, until a server rejects
    one by name; from then on it gets only those that were set. `chat_template_kwargs` are sent only if set.

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
            import openai  # noqa: F401
        except ImportError:
            raise ValueError("The server backend needs the `openai` package: pip install 'trl-credit[eval]'") from None
        allow_open_files(settings.concurrency)
        self.settings = settings
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        key = (settings.api_key or os.environ.get("OPENAI_API_KEY") or "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise ValueError("The API key (OPENAI_API_KEY) has characters that an HTTP header cannot hold.")
        secrets = [secret for url in settings.addresses for secret in secrets_of(url)]
        secrets += [key] if key != "none" else []
        self._endpoints = [
            Endpoint(url, settings, key, secrets, self.chat_template_kwargs) for url in settings.addresses
        ]
        self._card: dict[str, Any] | None = None  # what the endpoints say of the model
        self._context: int | None = None  # to which `max_tokens` was cut

    def identity(self) -> dict[str, Any]:
        """The model's name and what the endpoint reports of it. Leaves out the address, so that another address or
        number of replicas may continue a run, and a context to which `max_tokens` was cut.

        Raises:
            BackendError: No endpoint can be reached; one refuses the key, does not serve the model, or serves another one
                than the others do.
        """
        if self._card is None:
            self._card = self._run(self._describe)
        found = {"model": self.settings.model, **self._card}
        if self._context is not None:
            found.pop("max_model_len", None)
        return found | ({"chat_template_kwargs": self.chat_template_kwargs} if self.chat_template_kwargs else {})

    def upgraded(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Without `max_model_len`, where it counts no longer."""
        ours = self.identity()
        return {name: value for name, value in identity.items() if name != "max_model_len" or name in ours}

    def prepare(self, requests: Sequence[Request], sampling: SamplingSettings) -> SamplingSettings:
        """Cuts `max_tokens` to the context that the endpoint states, if it counts tokens (vLLM's `/tokenize`) or the
        prompts are token ids."""
        self.identity()
        context = min((one.context for one in self._endpoints if one.context is not None), default=None)
        if context is None:
            return sampling
        unique = [*{json.dumps(request.prompt): request for request in requests}.values()]  # samples share their prompt
        ids = self._run(self._token_ids, unique)
        if ids is None:
            if sampling.max_tokens >= context:
                logger.warning(
                    "`max_tokens` is %d, and the server's context %d: it cannot be cut to what the prompts leave, because "
                    "the server does not count tokens (`/tokenize`). Requests that do not fit are refused.",
                    sampling.max_tokens,
                    context,
                )
            return sampling
        self._context = context
        return fit(sampling, [Rendered(r, i) for r, i in zip(unique, ids, strict=True)], context)

    def generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        """Generates in an event loop of its own. The calling thread must not be running one: from a notebook, use
        `await asyncio.to_thread(...)`. An exception from `emit` ends the run and cancels requests in flight.

        Raises:
            BackendError: The endpoint refuses a request (4xx), which ends the run at once; the endpoint is dead; or
                some requests used up their retries (raised after all others are done).
        """
        self._run(self._generate, requests, sampling, emit)

    def notes(self) -> list[str]:
        if all(endpoint.sends_neutral for endpoint in self._endpoints):
            return []
        return ["the server does not know top_k, min_p, repetition_penalty: left out"]

    def close(self) -> None:
        """Does nothing: connections are closed at the end of every call."""

    def _run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Calls an asynchronous function in an event loop of its own, connected to all endpoints."""

        import openai

        # The default allows 1000 connections
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=None)

        async def connected() -> T:
            async with openai.DefaultAsyncHttpxClient(limits=limits) as http_client:
                for endpoint in self._endpoints:
                    endpoint.connect(http_client)
                return await function(*arguments)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(connected())
        raise BackendError(
            "The server backend cannot run within an event loop, as of a notebook: use `await asyncio.to_thread(...)`."
        )

    # ---- before the first sample

    async def _describe(self) -> dict[str, Any]:
        """What the endpoints report of the model. Those that do not answer are left for later, unless none does."""
        found = await asyncio.gather(*(one.card(retries=2) for one in self._endpoints), return_exceptions=True)
        absent, known = [], []
        for endpoint, card in zip(self._endpoints, found, strict=True):
            if isinstance(card, TransientError):
                absent.append((endpoint, card))
            elif isinstance(card, BaseException):
                raise card
            elif card:
                known.append((endpoint, card))
        if len(absent) == len(found):
            raise BackendError("\n".join(str(error) for _, error in absent))
        for endpoint, error in absent:
            endpoint.rest(error.wait)
            logger.warning("%s The other addresses get its share until it answers.", error)
        if any(_weights(card) != _weights(known[0][1]) for _, card in known):
            cards = "; ".join(f"{endpoint.address}: {endpoint.shown(json.dumps(card))}" for endpoint, card in known)
            raise BackendError(
                f"The addresses of `base_url` do not serve the same model as {self.settings.model!r}: {cards}. Serve one "
                "model, from the same path, at all of them."
            )
        return known[0][1] if known else {}

    async def _token_ids(self, requests: Sequence[Request]) -> list[list[int]] | None:
        """The prompts' token ids, from the first endpoint that answers; `None` if it does not count tokens.

        Raises:
            BackendError: None answers.
        """
        failures = []
        for endpoint in sorted(self._endpoints, key=lambda one: one.failures):
            try:
                return await endpoint.token_ids(requests)
            except TransientError as error:
                endpoint.rest(error.wait)
                failures.append(str(error))
        raise BackendError(f"No server counts the prompts' tokens (`/tokenize`): {'; '.join(failures)}. Try again.")

    # ---- samples

    async def _generate(self, requests: Sequence[Request], sampling: SamplingSettings, emit: Emit) -> None:
        settings = self.settings
        give_up_after = settings.give_up_after or max(8, settings.concurrency)
        todo, running = iter(requests), {}
        failed = in_a_row = 0
        several = len(self._endpoints) > 1
        watches = [asyncio.create_task(_watch(endpoint)) for endpoint in self._endpoints if several]
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
            for task in (*running, *watches):
                task.cancel()
            await asyncio.gather(*running, *watches, return_exceptions=True)
        if failed:
            raise BackendError(f"{failed} of {len(requests)} samples could not be made, the last {last}. {_KEPT}")

    async def _complete(self, request: Request, sampling: SamplingSettings) -> Generation:
        """Generates one completion, with retries. Before each wait, every address that is available has its turn."""
        settings, attempts = self.settings, 0
        for waits in itertools.count():
            left = list(self._endpoints)
            while left == self._endpoints or any(endpoint.is_available() for endpoint in left):
                endpoint = min(left, key=Endpoint.load)
                left.remove(endpoint)
                attempts += 1
                try:
                    async with endpoint.occupied(settings.request_timeout):
                        if endpoint.failures and len(self._endpoints) > 1:
                            await self._check(endpoint)
                        made = await endpoint.complete(request, sampling)
                except TransientError as error:
                    failure = error
                except RefusedError as error:
                    failure = self._refused(endpoint, error)
                else:
                    endpoint.recover()
                    return made
                endpoint.rest(failure.wait)
                logger.info("Sample %s failed at %s: %s", request.key, endpoint.address, failure)
            if waits == settings.max_retries:
                raise _ExhaustedError(f"after {attempts} attempts: {failure}")
            await asyncio.sleep(pause(settings.backoff, waits, failure.wait))

    async def _check(self, endpoint: Endpoint) -> None:
        """Asks an endpoint that failed, or was absent at the start, whether it serves what the others do.

        Raises:
            TransientError: It does not answer.
            RefusedError: It does not serve that.
        """
        card = await endpoint.card()
        if card and self._card and _weights(card) != _weights(self._card):
            raise RefusedError(
                f"{endpoint.address} serves another model than the others: {endpoint.shown(json.dumps(card))}."
            )
        if endpoint.context is not None and self._context is not None and endpoint.context < self._context:
            raise RefusedError(
                f"{endpoint.address} has a context of {endpoint.context} tokens, and this run needs {self._context}."
            )

    def _refused(self, endpoint: Endpoint, error: RefusedError) -> TransientError:
        """Raises `BackendError` once no endpoint is left that has not refused."""
        known, endpoint.refusal = endpoint.refusal, str(error)
        if all(one.refusal for one in self._endpoints):
            raise BackendError(f"{error} What is finished is kept.")
        if known is None:
            logger.warning("%s The other addresses get its share.", error)
        return TransientError(str(error))


def _weights(card: dict[str, Any]) -> dict[str, Any]:
    """What an endpoint says of its weights."""
    return {name: value for name, value in card.items() if name != "max_model_len"}


async def _watch(endpoint: Endpoint) -> None:
    """Gives up what an endpoint owes once it no longer answers: a machine without power or network closes no connection."""
    missed = 0
    while True:
        await asyncio.sleep(_WATCHED)
        missed = 0 if not endpoint.busy or await endpoint.is_there() else missed + 1
        if missed == _MISSED:
            logger.warning("%s no longer answers. The other addresses get what it owed.", endpoint.address)
            endpoint.abandon()
            missed = 0
