"""What vLLM's CPU build lacks for training with TRL. vLLM calls `register` in each of its processes.

Weights of linear layers stay loadable: the CPU build packs them for its own kernels and drops the parameter, after which
TRL's weight sync fails ("Parameter has no attribute weight_loader").

And a file carries the weights to a server, in the place of NCCL, which needs GPUs: `{"backend": "file"}` as the server's
`--weight-transfer-config`, and `send_by_file` in the trainer.
"""

from dataclasses import dataclass
from pathlib import Path

import torch


def register() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = _leave_unpacked
    if "file" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("file", __name__, "FileEngine")


def _leave_unpacked(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def __getattr__(name: str):
    """`FileEngine`, made when the factory asks for it: vLLM's classes may not be imported while it loads plugins."""
    if name != "FileEngine":
        raise AttributeError(name)
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )

    @dataclass
    class Place(WeightTransferInitInfo):
        path: str

    @dataclass
    class Names(WeightTransferUpdateInfo):
        names: list[str]

    class FileEngine(WeightTransferEngine):
        init_info_cls, update_info_cls = Place, Names

        def init_transfer_engine(self, init_info: Place) -> None:
            self.path = init_info.path

        def start_weight_update(self) -> None:
            pass

        def update_weights(self, update_info: dict) -> None:
            # The base class synchronizes an accelerator first
            self.receive_weights(self.parse_update_info(update_info))

        def receive_weights(self, update_info: Names) -> None:
            weights = torch.load(self.path, weights_only=True)
            if list(weights) != update_info.names:
                raise ValueError(f"{self.path} holds other weights than those announced.")
            self.model.load_weights(list(weights.items()))

        def finish_weight_update(self) -> None:
            pass

        def shutdown(self) -> None:
            pass

    return FileEngine


def send_by_file(path: Path) -> None:
    """Makes TRL's client leave the weights in a file for the server's `FileEngine`."""
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(self, device=0):
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {"path": str(path)}})

    def update_named_params(self, metadata, named_params):
        torch.save({name: weights.detach().clone() for name, weights in named_params}, path)
        self._start_weight_update()
        names = [name for name, *_ in metadata]
        self._post(f"{self.base_url}/update_weights", json={"update_info": {"names": names}})
        self._finish_weight_update()

    VLLMClient.init_communicator, VLLMClient.update_named_params = init_communicator, update_named_params
