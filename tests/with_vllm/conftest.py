"""What all tests with vLLM need."""

import pytest
from support.vllm import ENVIRONMENT


@pytest.fixture(scope="session", autouse=True)
def loopback():
    """Requests to this machine's servers pass no proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", ENVIRONMENT["NO_PROXY"])
        yield
