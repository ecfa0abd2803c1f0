"""One address of the `server` backend: what it serves, how it is asked, and how it fares."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from ..._util.text import HIDDEN, nearest, redact_url, safe, split_url
from .answers import read_generation, retry_after
from .base import BackendError, Generation, Request, SamplingSettings
from .prompts import limit_of


if TYPE_CHECKING:
    from .server import ServerSettings


logger = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0  # seconds between two attempts; a longer `Retry-After` of the server is honoured up to twice that
_PATIENCE = 30.0  # seconds for an answer for which no model runs
_AT_ONCE = 32  # prompts that are counted at a time
_BEYOND = ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs")  # not part of OpenAI's API


class TransientError(Exception):
    """An attempt failed in a way that a retry may fix. `wait` is the seconds that the server asked to wait."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class RefusedError(BackendError):
    """An endpoint refuses the key or does not serve the model. Another may."""


def pause(backoff: float, failures: int, asked: float) -> float:
    """Seconds to wait after so many earlier failures. `asked` is what the server asked for."""
    wait = min(backoff * 2 ** min(failures, 30), _LONGEST_WAIT) * random.uniform(0.5, 1)
    return max(wait, min(asked, 2 * _LONGEST_WAIT))


def passes(status: int) -> bool:
    """True if the same request may succeed later."""
    return status in (408, 409, 425, 429) or status >= 500


class Endpoint:
    """One address. After a failure it rests, and then gets one request at a time until one succeeds.

    Args:
        base_url: The address.
        settings: Settings of all addresses.
        key: The API key.
        secrets: Texts that messages must not contain.
        chat_template_kwargs: Arguments of the chat template.
    """

    def __init__(
        self,
        base_url: str,
        settings: ServerSettings,
        key: str,
        secrets: Sequence[str],
        chat_template_kwargs: dict[str, Any],
    ):
        import openai

        self._openai, self._settings, self._key, self._secrets = openai, settings, key, secrets
        self._chat_template_kwargs = chat_template_kwargs
        self.address = redact_url(base_url)
        self.url, self.query = split_url(base_url)  # the client would append its paths after the query
        self.context: int | None = None  # in tokens, once `card` has found it
        self.sends_neutral = True  # also send the fields that are not part of OpenAI's API at neutral values
        self.refusal: str | None = None  # why it takes no requests, although it answers
        self.failures = 0
        self._rests_until = 0.0
        self._in_flight: set[asyncio.Timeout] = set()
        self._client: Any = None
        self._told: set[str] = set()

    def connect(self, http_client: Any) -> None:
        """Sends requests by a client of the running event loop, which endpoints may share."""
        openai = self._openai
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self.url,
            default_query=self.query,
            timeout=openai.Timeout(None, connect=self._settings.connect_timeout),
            max_retries=0,  # the client's own do not cover malformed answers
            http_client=http_client,
        )

    # ---- how it fares

    @property
    def busy(self) -> int:
        """Requests in flight."""
        return len(self._in_flight)

    @contextlib.asynccontextmanager
    async def occupied(self, seconds: float) -> AsyncIterator[None]:
        """Counts what runs within as in flight. Raises `TransientError` if it takes longer, or once it is abandoned."""
        limit = asyncio.timeout(seconds)
        deadline = limit.when()
        self._in_flight.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            late = f"No answer in {seconds:g} s (`request_timeout`)"
            raise TransientError(late if limit.when() == deadline else "It no longer answers at all") from None
        finally:
            self._in_flight.discard(limit)

    def abandon(self) -> None:
        """Gives up what is in flight."""
        for limit in self._in_flight:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())

    def is_available(self) -> bool:
        return not self.failures or (not self.busy and time.monotonic() >= self._rests_until)

    def load(self) -> tuple[int, int]:
        """Orders endpoints: those available by their requests in flight, then the others by their failures."""
        return (0 if self.is_available() else self.failures), self.busy

    def rest(self, asked: float = 0.0) -> None:
        """Counts a failure, but of those that were in flight together only the first."""
        now = time.monotonic()
        if now >= self._rests_until:
            self._rests_until = now + pause(self._settings.backoff, self.failures, asked)
            self.failures += 1

    def recover(self) -> None:
        """Ends the rest: a request succeeded."""
        self.failures, self._rests_until, self.refusal = 0, 0.0, None

    # ---- questions for which no model runs

    def _asking(self, retries: int = 0) -> Any:
        """The client with a short patience."""
        timeout = self._openai.Timeout(_PATIENCE, connect=self._settings.connect_timeout)
        return self._client.with_options(timeout=timeout, max_retries=min(retries, self._settings.max_retries))

    async def is_there(self) -> bool:
        """True if it answers, whatever it says."""
        try:
            await self._asking().models.with_raw_response.list()
        except self._openai.APIConnectionError:
            return False
        except self._openai.APIStatusError:
            pass
        return True

    async def card(self, retries: int = 0) -> dict[str, Any]:
        """What its list of models says of the model: `root`, `parent` and `max_model_len`, those that it states.

        Raises:
            TransientError: It cannot be reached, or cannot answer now.
            RefusedError: It refuses the key, is no OpenAI-compatible endpoint, or does not serve the model.
        """
        openai, model = self._openai, self._settings.model
        try:
            content = (await self._asking(retries).models.with_raw_response.list()).content
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 500, 501):
                path = redact_url(self.url.rstrip("/"))
                self._warn(
                    f"{path}/models answered {error.status_code}: only the first request will show that the model is served."
                )
                return {}
            text = self._refusal_of(error)
            if passes(error.status_code):
                raise TransientError(text, retry_after(error.response.headers)) from None
            raise RefusedError(text) from None
        except openai.APIConnectionError as error:
            raise TransientError(
                f"{self.address} cannot be reached: {self._reason(error)}. Is the server up (`vllm serve` takes minutes to "
                "load a model), and is this its address, with /v1 at the end?"
            ) from None
        try:
            cards = {str(card["id"]): card for card in json.loads(content)["data"]}
        except (ValueError, TypeError, KeyError):
            raise RefusedError(
                f"{self.address} is not an OpenAI-compatible endpoint: its list of models is {self.shown(content)}. "
                "Does the address end with /v1?"
            ) from None
        card = cards.get(model)
        # `transformers serve` lists the hub's cache, which may lack what it serves, and refuses unknown names itself
        if card is None and any(c.get("owned_by") != "".join(i.split("/", 1)[:-1]) for i, c in cards.items()):
            raise RefusedError(f"{self.address} does not serve {model!r}. {nearest(model, cards)}")
        if card is None:
            card = {}
            self._warn(f"{self.address} does not list {model!r}; trying anyway.")
        # vLLM states an adapter's context in its base model's entry only
        sizes = [found.get("max_model_len") for found in (card, cards.get(str(card.get("parent")), {}))]
        self.context = next((size for size in sizes if isinstance(size, int)), None)
        known = {key: card.get(key) for key in ("root", "parent", "max_model_len")}
        return {key: value for key, value in known.items() if isinstance(value, (str, int))}

    async def token_ids(self, requests: Sequence[Request]) -> list[list[int]] | None:
        """The prompts' token ids; `None` if it does not count tokens (vLLM's `/tokenize`).

        Raises:
            TransientError: It cannot be reached, or cannot answer now.
        """
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(request: Request) -> list[int] | None:
            async with gate:
                return await self._token_ids(request)

        ids = [await one(request) for request in requests[:1]]  # alone, because most servers do not count
        if None in ids:
            return None
        tasks = [asyncio.create_task(one(request)) for request in requests[1:]]
        try:
            ids += await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return None if None in ids else ids

    async def _token_ids(self, request: Request) -> list[int] | None:
        if request.has_token_ids:
            return list(request.prompt)
        openai, body = self._openai, {"model": self._settings.model}
        if isinstance(request.prompt, str):
            body["prompt"] = request.prompt
        else:
            body["messages"] = [dict(message) for message in request.prompt]
            body |= {"chat_template_kwargs": self._chat_template_kwargs} if self._chat_template_kwargs else {}
        address = self.url.rstrip("/").removesuffix("/v1") + "/tokenize"  # not part of OpenAI's API
        try:
            ids = json.loads(await self._asking(retries=2).post(address, cast_to=str, body=body))["tokens"]
            if isinstance(ids, list):
                return ids
            reason = "the token ids are no list"
        except openai.APIStatusError as error:
            if passes(error.status_code) and error.status_code != 501:
                raise TransientError(f"{self.address}: {self._reason(error)}") from None
            reason = self._reason(error)
        except openai.APIConnectionError as error:
            raise TransientError(f"{self.address} cannot be reached: {self._reason(error)}") from None
        except (openai.APIError, ValueError, TypeError, KeyError) as error:
            reason = type(error).__name__
        logger.info("%s does not count tokens: %s", self.address, reason)
        return None

    # ---- completions

    async def complete(self, request: Request, sampling: SamplingSettings) -> Generation:
        """One attempt at a completion.

        Raises:
            TransientError: It failed in a way that a retry may fix.
            RefusedError: The endpoint refuses the key or does not know the model.
            BackendError: It refuses the request.
        """
        openai = self._openai
        fields = {
            "model": self._settings.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": limit_of(request, sampling),
            "seed": request.seed,
            **({"stop": list(sampling.stop)} if sampling.stop else {}),
        }
        extra = {}
        if isinstance(request.prompt, str) or request.has_token_ids:
            api = self._client.completions
            fields["prompt"] = request.prompt if isinstance(request.prompt, str) else list(request.prompt)
            if request.has_token_ids:
                extra["return_token_ids"] = True
        else:
            api = self._client.chat.completions
            fields["messages"] = [dict(message) for message in request.prompt]
            if self._chat_template_kwargs:
                extra["chat_template_kwargs"] = self._chat_template_kwargs
        chosen, neutral = _beyond(sampling)
        sent = neutral if self.sends_neutral else {}
        try:
            answer = await api.with_raw_response.create(**fields, extra_body=extra | chosen | sent)
        except openai.APIStatusError as error:
            if passes(error.status_code):
                raise TransientError(self._reason(error), retry_after(error.response.headers)) from None
            said = self._said(error)
            if error.status_code in (400, 422) and any(name in said for name in sent):
                self.sends_neutral = False
                names = ", ".join(sorted(neutral))
                self._warn(
                    f"{self.address} does not know {names}: they are left out, and the model's own defaults may hold.",
                    f" It said: {said}",
                )
                return await self.complete(request, sampling)
            if error.status_code in (401, 403, 404):
                raise RefusedError(self._refusal_of(error)) from None
            raise BackendError(f"{self._refusal_of(error)} What is finished is kept.") from None
        except openai.APIConnectionError as error:
            raise TransientError(self._reason(error)) from None
        try:
            return read_generation(json.loads(answer.content))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {self.shown(str(error))}" if str(error) else type(error).__name__
            raise TransientError(f"Malformed answer ({reason}): {self.shown(answer.content)}") from None

    # ---- words

    def _warn(self, text: str, more: str = "") -> None:
        """Warns once."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("%s", text + more)

    def _refusal_of(self, error: Any) -> str:
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
        return f"{self.address} refuses: {status} {said}.{hint}"

    def _reason(self, error: Any) -> str:
        if isinstance(error, self._openai.APIStatusError):
            return f"{error.status_code} {self._said(error)}"
        cause = error.__cause__ or error  # the client's own message is always "Connection error."
        return f"{type(cause).__name__}: {self.shown(str(cause))}".rstrip(": ")

    def _said(self, error: Any) -> str:
        """Text of a server's error."""
        body = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        return self.shown(body if isinstance(body, str) else json.dumps(body, ensure_ascii=False))

    def shown(self, text: str | bytes) -> str:
        """A server's text for a message: one line, at most 500 characters, without control characters or secrets."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        text = safe(" ".join(text.split())).rstrip(".")
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text if len(text) <= 500 else text[:500] + " ..."


def _beyond(sampling: SamplingSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sampling fields that are not part of OpenAI's API: those that change something, and those that do not."""
    values = {
        "top_k": (sampling.top_k or -1, -1),  # -1 means all tokens in every version of vLLM and SGLang, 0 does not
        "min_p": (sampling.min_p, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
    }
    chosen = {name: value for name, (value, none) in values.items() if value != none}
    return chosen, {name: value for name, (value, _) in values.items() if name not in chosen}
