"""What needs vLLM in its process: `worker.py JOB.json` calls a function of this module and writes what it returns."""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from peft import LoraConfig
from support.launch import TIMES
from support.vllm import CONTEXT, greedy, texts_in
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.evaluation import EvalConfig, evaluate
from trl_credit.evaluation.backends.base import BackendError
from trl_credit.model_files import embedded_model_path
from trl_credit.recipe.evaluation import TrainingEvaluation
from trl_credit.toy.arithmetic import correct_answer, make_dataset


def evaluate_in_process(folder, models):
    """Each model's texts and dtype, and how vLLM refused a start in the first one's folder."""
    found = {"refused": None}
    for name, model in models.items():
        settings = {"model": model, "backend": "vllm"}
        if found["refused"] is None:
            try:
                evaluate(greedy(folder / name, **settings, vllm_kwargs={"max_model_len": 32 * CONTEXT}))
            except BackendError as error:
                found["refused"] = str(error)
        evaluate(greedy(folder / name, **settings, vllm_kwargs={"max_model_len": CONTEXT, "enforce_eager": True}))
        run = json.loads((folder / name / "run.json").read_text())
        found[name] = {"texts": sorted(texts_in(folder / name).items()), "dtype": run["identity"]["backend"]["dtype"]}
    return found


# ---- training

DYNAMIC = {"dynamic_sampling": True, "dynamic_sampling_reward": "correct_answer"}
METHODS = {
    "uniform": {"method": "uniform"},
    "gcpo": {"method": "gcpo", "negative_prompt": "!{prompt}"},
    "dgpo": {"method": "dgpo", "temperature": 0.01},
}


def make_trainer(folder, method, lora=False, **settings):
    """A trainer of the embedded model; `stock` is TRL's."""
    kind, cls = (GRPOConfig, GRPOTrainer) if method == "stock" else (CreditGRPOConfig, CreditGRPOTrainer)
    defaults = {
        "max_steps": 3,
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "max_completion_length": 40,
        "learning_rate": 3e-4,  # weights that are not synchronized show, and the policy does not collapse
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "use_vllm": True,
        "vllm_max_model_length": CONTEXT,
        "vllm_importance_sampling_mode": "token_truncate",
        "model_init_kwargs": {"dtype": "float32"},
        "seed": 0,
    }
    credit = {} if method == "stock" else {"credit": METHODS[method]}
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM")
    return cls(
        model=embedded_model_path(),
        reward_funcs=[correct_answer],
        args=kind(output_dir=str(folder / method), **defaults | credit | settings),
        train_dataset=make_dataset(200, seed=0),
        peft_config=adapter if lora else None,
    )


def train(folder, method, evaluated=False, **settings):
    """What a run logs, without its times."""
    trainer = make_trainer(folder, method, **settings)
    if evaluated:
        config = {"tasks": ["trl_credit:arithmetic"], "n": 2, "limit": 6, "top_p": 1.0, "max_tokens": 40}
        evaluation = TrainingEvaluation(EvalConfig(**config, plain_prompts=True, report=False), every=2)
        evaluation.attach(trainer)
    trainer.train()
    if evaluated:
        evaluation.at_end()
    return [
        {key: value for key, value in row.items() if not any(time in key for time in TIMES)}
        for row in trainer.state.log_history
    ]


def colocate(folder):
    """TRL's trainer, `uniform`, the same without weight sync, and methods with what may go with them."""
    from trl.generation.vllm_generation import VLLMGeneration

    found = {method: train(folder, method, vllm_mode="colocate") for method in ("stock", "uniform")}
    sync, VLLMGeneration.sync_weights = VLLMGeneration.sync_weights, lambda self: None
    found["stale"] = train(folder, "uniform", vllm_mode="colocate")
    VLLMGeneration.sync_weights = sync
    more = {"vllm_mode": "colocate", "evaluated": True, **DYNAMIC}
    found["gcpo"] = train(folder, "gcpo", lora=True, num_iterations=2, max_steps=4, **more)
    return found


def with_server(folder, port):
    from trl_credit_vllm_cpu import send_by_file

    send_by_file(folder / "weights.pt")
    server = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
    found = {"uniform": train(folder, "uniform", **server)}
    more = {"evaluated": True, **DYNAMIC}
    found["dgpo"] = train(folder, "dgpo", num_iterations=2, max_steps=4, **server, **more)
    return found


def two_processes(folder, port):
    from trl_credit_vllm_cpu import send_by_file

    send_by_file(folder / "weights.pt")
    server = {"vllm_mode": "server", "vllm_server_host": "127.0.0.1", "vllm_server_port": port}
    return {"gcpo": train(folder, "gcpo", evaluated=True, per_device_train_batch_size=8, **server, **DYNAMIC)}


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text())
    result = globals()[job["function"]](Path(job["folder"]), **job["arguments"])
    if PartialState().is_main_process:
        job_file.with_suffix(".result").write_text(json.dumps(result))
    PartialState().destroy_process_group()
