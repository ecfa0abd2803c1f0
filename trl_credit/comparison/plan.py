"""The plan of a comparison, which is checked before anything runs, and the files of its folder.

plan.json               recipe, methods, seeds; a folder with other settings is refused
recipe.yaml             what every run trains
runs/LABEL/seed-K/      run.json (once finished), log.txt, eval/
tuning/                 the runs that chose each method's values, as a folder like this one
comparison.json         statistics, shown in comparison.md, comparison.html, curves.png and curves.svg
"""

import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .._util.files import RunFolderError, differences, read_json, write_atomically
from .._util.settings import AtLeast1, Finite, Seed, check_output_dir, check_value
from .._util.text import nearest, redact, redact_words
from .._util.yaml import dump
from ..methods.spec import read_spec
from ..methods.table import MIX, TABLE


FORMAT = 1
# Recipe fields that the comparison sets itself
_VARIED = {
    "credit": "--methods",
    "seed": "--seeds",
}
_DECIDED = ("output_dir", "logging_steps", "logging_strategy", "disable_tqdm", "resume_from_checkpoint", "push_to_hub")
# What is compared: the task, the model, the measures and the number of updates
_COMMON = (
    "trainer", "model_name_or_path", "model_revision", "dataset_name", "dataset_config", "dataset_train_split", "eval",
    "reward_funcs", "reward_weights", "max_steps", "num_train_epochs", "num_generations", "per_device_train_batch_size",
)  # fmt: skip
# The first seed of tuning, unless seeds are listed
FIRST_TUNING_SEED = 1000
_SECTION = ("methods", "seeds", "baseline", "ceiling", "target_reward", "at_target", "tune", "tuning_seeds", "tune_by")


@dataclass
class Method:
    """A method of a comparison: its label, its folder in `runs`, its full mapping, and its own fields of the recipe."""

    label: str
    folder: str
    credit: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """What a comparison comprises, including earlier commands in the same folder.

    Args:
        recipe: The recipe, without `compare`.
        overrides: Recipe fields from the command line, as its words.
        settings: Settings that must be equal in all runs, by field.
        methods: All methods, oldest first.
        seeds: All seeds.
        baseline: Label of the method that others are compared with.
        target_reward: The reward to reach, or `None`.
        at_target: Logged metrics to compare at the update that reaches it.
        asked: Labels and seeds of this command.
        launch: The launcher's words. Empty for one process.
        command: Command that makes the whole comparison.
        tuning: What was tuned before, and every value's result ([`~.tuning.record_of`]).
        ceiling: Label of the method whose lead is all that can be had, or `None`.
    """

    recipe: dict[str, Any]
    overrides: list[str]
    settings: dict[str, Any]
    methods: list[Method]
    seeds: list[int]
    baseline: str
    target_reward: float | None = None
    at_target: list[str] = field(default_factory=list)
    asked: tuple[list[str], list[int]] = field(default_factory=lambda: ([], []))
    launch: list[str] = field(default_factory=list)
    command: str = ""
    tuning: dict[str, Any] | None = None
    ceiling: str | None = None

    def method(self, label: str) -> Method:
        return next(method for method in self.methods if method.label == label)

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **{key: value for key, value in asdict(self).items() if key != "asked"}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """Builds a plan from a plan.json's contents.

        Raises:
            KeyError, TypeError: The data is not a plan.
        """
        data = {"at_target": [], "tuning": None, "ceiling": None, **data}  # older plans have none
        known = {f.name: data[f.name] for f in fields(cls) if f.name != "asked"}
        known["methods"] = [Method(**method) for method in known["methods"]]
        return cls(**known)


def run_folder(output_dir: Path, method: Method, seed: int) -> Path:
    return Path(output_dir) / "runs" / method.folder / f"seed-{seed}"


def read_plan(output_dir: Path) -> Plan:
    """Reads the plan of a folder.

    Raises:
        RunFolderError: The folder has no valid plan.
    """
    path = Path(output_dir) / "plan.json"
    if not path.exists():
        raise RunFolderError(f"There is no plan.json in {output_dir}: is it the folder of a comparison?")
    try:
        return Plan.from_dict(read_json(path))
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is not what `trl-credit compare` writes: {error}.") from error


def write_plan(output_dir: Path, plan: Plan) -> None:
    write_atomically(Path(output_dir) / "recipe.yaml", [dump(plan.recipe)])
    write_atomically(Path(output_dir) / "plan.json", [json.dumps(_without_secrets(plan), indent=2) + "\n"])


def _without_secrets(plan: Plan) -> dict[str, Any]:
    # Runs read secrets from recipe.yaml. The page is made from plan.json, so it must hold none
    found = redact(plan.to_dict())
    return found | {"overrides": redact_words(plan.overrides)}


def read_recipe(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads a recipe's fields, and the comparison's settings in it.

    Raises:
        ValueError: The file cannot be read, or has unknown settings.
    """
    from .._util.arguments import read_fields
    from ..recipe.recipe import recipe_classes

    recipe = read_fields(path, recipe_classes(["--config", str(path)]))
    return recipe, take_section(recipe)


def take_section(recipe: dict[str, Any]) -> dict[str, Any]:
    """Takes the comparison's settings out of a recipe's fields.

    Raises:
        ValueError: They are no mapping, or one is unknown.
    """
    section = recipe.pop("compare", None) or {}
    if not isinstance(section, dict):
        raise ValueError(f"`compare` must be a mapping, got {section!r}.")
    for name in section:
        if name not in _SECTION:
            raise ValueError(f"`compare`: unknown setting {name!r}. {nearest(name, _SECTION)}")
    return section


def parse_seeds(value: Any, name: str = "seeds", first: int = 0) -> list[int]:
    """Parses seeds: a number N of them, or a list, also as text (`[7]`).

    Args:
        value: The number or list.
        name: The setting, for messages.
        first: Where a number is counted from.

    Raises:
        ValueError: The value is neither, or has a duplicate.
    """
    given = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = []
    if isinstance(value, str) and "," in value:
        raise ValueError(
            f"`{name}`: write several seeds as a list, '[1, 2]', or with spaces between them, got {given!r}."
        )
    if not isinstance(value, (list, tuple)):
        return list(range(first, first + check_value(name, value, AtLeast1)))
    try:
        seeds = [check_value(name, seed, Seed) for seed in value]
    except ValueError:
        seeds = []
    if not seeds:
        raise ValueError(f"`{name}` must be a number of seeds or a list of seeds from 0, got {given!r}.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`{name}`: one is listed twice: {', '.join(map(str, seeds))}.")
    return seeds


def listed_methods(values: Any) -> list[Any]:
    """The methods of a comparison as written. Raises `ValueError` if there are none."""
    values = [values] if isinstance(values, (str, Mapping)) else values
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError("No methods: give --methods NAME ..., or `compare: {methods: [...]}` in the recipe.")
    return list(values)


def check_own_fields(credit: Any, known: Collection[str]) -> None:
    """Raises `ValueError` if a field of the recipe, one of the `known`, stands among a registered method's parameters."""
    from ..methods.cards import card_of

    if isinstance(credit, (list, tuple)):
        for part in credit:
            check_own_fields(part, known)
    if not isinstance(credit, Mapping) or not isinstance(credit.get("method"), str) or credit["method"] not in TABLE:
        return
    parameters = {parameter.name for parameter in card_of(credit["method"]).parameters}
    for name, value in credit.items():
        if name in known and name not in (*parameters, *_VARIED, *_DECIDED, *_COMMON):
            example = json.dumps({"method": credit["method"], "settings": {name: value}}, default=str)
            raise ValueError(
                f"`methods`: `{name}` is a field of the recipe, not a parameter of {credit['method']!r}. For this method "
                f"only: {example}. To try several values: --tune {name}=VALUE,VALUE,..."
            )


def split_method(value: Any) -> tuple[Any, Any, Any]:
    """Splits a method of a comparison into its credit, as in a recipe, its `label` and its `settings`.

    Raises:
        ValueError: Text that is not JSON or YAML, or a list of methods with parameters beside it.
    """
    value = read_spec(value)
    if not isinstance(value, Mapping):
        return value, None, {}
    credit = dict(value)
    label, settings = credit.pop("label", None), credit.pop("settings", {})
    if isinstance(credit.get("method"), (list, tuple)):
        parts = credit.pop("method")
        whole = [name for name in credit if name in ("advantage", "guard")]
        if whole:
            example = json.dumps({"method": MIX, "parts": parts, **credit}, default=str)
            raise ValueError(f"`methods`: `{whole[0]}` belongs to {MIX!r}, which a list is short for. Write {example}.")
        for name in credit:
            raise ValueError(
                f"`methods`: `{name}` stands beside a list of methods, where only `label` and `settings` can. Write "
                f"a parameter in the mapping of its method, [{{method: NAME, {name}: ...}}, ...], and a field of the recipe "
                "in `settings`."
            )
        return parts, label, settings
    return credit, label, settings


def parse_methods(
    values: Sequence[Any], recipe_credit: Any = None, earlier: Sequence[Method] = ()
) -> tuple[list[Method], list[str]]:
    """Returns all methods of a comparison, earlier ones first, and the labels of those asked for.

    Methods keep their folder when others are added. Labels are chosen so that they tell all methods apart. The bare
    name of the method that the recipe trains with gets the recipe's parameters.

    Args:
        values: Names, dotted paths, lists or mappings. A mapping may have a `label`, and `settings`: fields of the recipe
            that are this method's own, such as a learning rate. Its `method` may be a list.
        recipe_credit: The recipe's own `credit`.
        earlier: Methods already in the folder.

    Raises:
        ValueError: No methods, an unknown method, wrong parameters, or a duplicate.
    """
    from ..methods.registry import build_credit

    values = listed_methods(values)
    own = build_credit(recipe_credit) if recipe_credit is not None else None
    asked, labels = [], {}
    for value in values:
        value, label, settings = split_method(value)
        settings = _method_settings(settings)
        if label is not None and (not isinstance(label, str) or not label.strip()):
            raise ValueError(f"`label` of a method must be text, got {label!r}.")
        method = own if own is not None and value == own.name else build_credit(value)
        if isinstance(value, str) and type(method) is type(own):  # a path of the recipe's own class
            method = own
        arm = json.loads(json.dumps(method.to_dict())), settings
        if arm in asked:
            raise ValueError(f"The method {label or method.name!r} is listed twice.")
        if label is not None:
            labels[len(asked)] = label
        asked.append(arm)
    # Rebuild earlier methods, so that parameters added in this version get their defaults
    there = [(json.loads(json.dumps(build_credit(method.credit).to_dict())), method.settings) for method in earlier]
    every = there + [arm for arm in asked if arm not in there]
    found = _labels(every)
    known = {method.folder for method in earlier}
    methods = []
    for place, arm in enumerate(every):
        number = asked.index(arm) if arm in asked else None
        before = earlier[place] if place < len(earlier) else None
        given_before = before is not None and before.label not in _labels(there)
        label = labels.get(number) or (before.label if given_before else found[place])
        folder = before.folder if before is not None else _folder(label, known)
        known.add(folder)
        methods.append(Method(label, folder, *arm))
    names = [method.label for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two methods have the label {name!r}.")
    return methods, [methods[every.index(arm)].label for arm in asked]


def _labels(arms: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """The label of each method: its name, the parameters that tell it apart, and its own fields."""
    from ..methods.compose import labelled

    credits = [credit for i, (credit, _) in enumerate(arms) if credit not in [other for other, _ in arms[:i]]]
    names = dict(zip(map(json.dumps, credits), labelled(credits), strict=True))
    return [
        " ".join([names[json.dumps(credit)], *(f"{name}={value}" for name, value in settings.items())])
        for credit, settings in arms
    ]


def _method_settings(settings: Any) -> dict[str, Any]:
    """A method's own fields of the recipe, checked."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"`settings` of a method must be a mapping of the recipe's fields, got {settings!r}.")
    check_varied(settings, "`settings` of a method")
    return json.loads(json.dumps(dict(settings)))


def check_varied(names: Iterable[str], where: str) -> None:
    """Raises `ValueError` for a field of the recipe that methods of a comparison must share.

    Args:
        names: Names of fields.
        where: What sets them, for the message.
    """
    for name in names:
        if name in (*_VARIED, *_DECIDED, *_COMMON):
            raise ValueError(f"{where}: {name!r} cannot differ between the methods of a comparison.")


def _folder(label: str, taken: set[str]) -> str:
    name = re.sub(r"[^\w.=+-]+", "-", label).strip("-.") or "method"
    found, number = name, 1
    taken = {folder.casefold() for folder in taken}  # some disks know no case
    while found.casefold() in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def run_arguments(plan: Plan, output_dir: Path, method: Method, seed: int, resume: bool = False) -> list[str]:
    """Command-line words after `trl-credit train` for one run."""
    words = ["--config", str(Path(output_dir) / "recipe.yaml"), *plan.overrides]
    fixed = {
        "credit": json.dumps(method.credit),
        "seed": seed,
        "output_dir": run_folder(output_dir, method, seed),
        "logging_strategy": "steps",
        "logging_steps": 1,
        "disable_tqdm": "true",
        "push_to_hub": "false",
    }
    given = {*plan.recipe, *field_names(plan.overrides)}
    if "report_to" not in given:
        fixed["report_to"] = "none"
    elif "run_name" not in given:
        fixed["run_name"] = f"{method.label} seed {seed}"
    for name, value in method.settings.items():
        fixed[name] = json.dumps(value) if isinstance(value, (dict, list, bool)) else value
    if resume:
        fixed["resume_from_checkpoint"] = "auto"
    return words + [word for name, value in fixed.items() for word in (f"--{name}", str(value))]


def field_names(words: Sequence[str]) -> list[str]:
    """Names of the fields that command-line words set."""
    return [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]


def make_plan(
    config: Path,
    output_dir: Path,
    overrides: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | int | None = None,
    baseline: str | None = None,
    target_reward: float | None = None,
    at_target: Sequence[str] | None = None,
    launch: Sequence[str] = (),
    tuning: Mapping[str, Any] | None = None,
    ceiling: str | bool | None = None,
) -> Plan:
    """Reads and checks everything that can be known before loading a model. Writes nothing.

    Args:
        config: The recipe. Its `compare` section supplies what is `None` here.
        output_dir: Folder of the comparison, which is continued if it exists.
        overrides: Recipe fields, as command-line words.
        methods: As in `parse_methods`.
        seeds: As in `parse_seeds`.
        baseline: Label of a method.
        target_reward: The reward to reach.
        at_target: Logged metrics to compare at the update that reaches it.
        launch: The launcher's words.
        tuning: What chose the methods' own settings, see [`Plan`].
        ceiling: Label of a method whose lead over the baseline is all that can be had. `False` for none, whatever the recipe
            says.

    Raises:
        ValueError: A setting is wrong.
        RunFolderError: The folder holds a different comparison.
    """
    recipe, section = read_recipe(Path(config))
    check_output_dir(output_dir)
    check_overrides(overrides)
    recipe_credit = recipe.pop("credit", None)
    for name in ("seed", *_DECIDED):
        recipe.pop(name, None)
    before = read_plan(output_dir) if (Path(output_dir) / "plan.json").exists() else None
    if before is None and (Path(output_dir) / "runs").exists():
        raise RunFolderError(f"{output_dir} has runs but no plan.json: set another `--output_dir`.")
    if before is not None:
        check_tuned_alike(before, tuning, output_dir)
    tuning = _with_earlier(before, tuning)
    every, labels = parse_methods(
        section.get("methods") if methods is None else methods, recipe_credit, before.methods if before else ()
    )
    asked_seeds = parse_seeds(section.get("seeds", 1) if seeds is None else seeds)
    baseline, ceiling, target_reward = _choices(
        section, before, baseline, ceiling, target_reward, every, methods is not None
    )
    at_target = _metrics_at_target(section, before, at_target, target_reward)
    plan = Plan(
        recipe=recipe,
        overrides=list(overrides),
        settings={},
        methods=every,
        seeds=[*(before.seeds if before else []), *(s for s in asked_seeds if not before or s not in before.seeds)],
        baseline=baseline,
        ceiling=ceiling,
        target_reward=target_reward,
        at_target=at_target,
        asked=(labels, asked_seeds),
        launch=list(launch),
        tuning=tuning,
    )
    plan.settings = _checked_settings(plan, output_dir)
    if before is not None:
        found = differences(redact(before.settings), redact(plan.settings))
        if found:
            shown = "; ".join(f"`{name}`: {json.dumps(old)} there, {json.dumps(new)} now" for name, old, new in found)
            raise RunFolderError(
                f"{output_dir} has a comparison with other settings: {shown}. Set another `--output_dir`, or use the "
                "previous settings (methods and seeds may be added)."
            )
    plan.command = command_of(plan, config, output_dir)
    return plan


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises `ValueError` if command-line words set a field that a comparison sets itself."""
    for name in field_names(overrides):
        if name in _VARIED:
            raise ValueError(f"`{name}` is what a comparison varies: use {_VARIED[name]}.")
        if name in _DECIDED:
            raise ValueError(f"`{name}` cannot be set in a comparison, which sets it itself.")


def check_tuned_alike(before: Plan, tuning: Mapping | None, output_dir: Path) -> None:
    """Raises `RunFolderError` if the methods in the folder were tuned by other values or seeds, or not at all."""
    old, new = ({k: v for k, v in (part or {}).items() if k != "rows"} for part in (before.tuning, tuning))
    if json.loads(json.dumps(new)) != old:
        there = "was not tuned" if not old else f"was tuned by {json.dumps(old)}"
        raise RunFolderError(
            f"{output_dir} has a comparison that {there}. Set another `--output_dir`, or tune as before."
        )


def _with_earlier(before: Plan | None, tuning: Mapping | None) -> dict | None:
    """The tuning of all methods, also of those that this command does not name."""
    if tuning is None:
        return None
    earlier = before.tuning["rows"] if before is not None else []
    labels = {row["label"] for row in tuning["rows"]}
    kept = [row for row in earlier if row["label"] not in labels]
    return json.loads(json.dumps({**tuning, "rows": [*kept, *tuning["rows"]]}))


def _choices(
    section: Mapping, before: Plan | None, baseline, ceiling, target_reward, methods: list[Method], narrowed: bool
) -> tuple:
    """Baseline, ceiling and target from the command line, else the recipe, else the folder, else the first method and
    none. If the command line names the methods (`narrowed`), the recipe's ceiling need not be among them."""
    labels = [method.label for method in methods]
    narrowed = narrowed or baseline is not None
    if baseline is None:
        baseline = section.get("baseline")
    if baseline is None and before is not None:
        baseline = methods[before.methods.index(before.method(before.baseline))].label
    if baseline is None:
        baseline = labels[0]
    if baseline not in labels:
        raise ValueError(f"`baseline`: {baseline!r} is not among the methods. {nearest(baseline, labels)}")
    if ceiling is None:
        ceiling = section.get("ceiling", before.ceiling if before else None)
        if narrowed and (ceiling == baseline or ceiling not in labels):  # this command's methods are others
            ceiling = None
    ceiling = ceiling or None
    if ceiling is not None and ceiling not in labels:
        raise ValueError(f"`ceiling`: {ceiling!r} is not among the methods. {nearest(str(ceiling), labels)}")
    if ceiling == baseline:
        raise ValueError(f"`ceiling` and `baseline` are both {baseline!r}: its lead over itself is nothing to share.")
    if target_reward is None:
        target_reward = section.get("target_reward", before.target_reward if before else None)
    if target_reward is not None:
        target_reward = check_value("target_reward", target_reward, Finite)
    return baseline, ceiling, target_reward


def check_choices(
    section: Mapping,
    before: Plan | None,
    methods: list[Method],
    baseline: str | None = None,
    target_reward: float | None = None,
    at_target: Any = None,
    ceiling: str | None = None,
    narrowed: bool = False,
) -> None:
    """Raises `ValueError` if the baseline, the ceiling, the target or the metrics at it cannot be those of these methods
    and of the ones already in the folder."""
    earlier = before.methods if before else []
    known = {method.label for method in earlier}
    every = [*earlier, *(method for method in methods if method.label not in known)]
    *_, target_reward = _choices(section, before, baseline, ceiling, target_reward, every, narrowed)
    _metrics_at_target(section, before, at_target, target_reward)


def _metrics_at_target(section: Mapping, before: Plan | None, metrics, target_reward: float | None) -> list[str]:
    """Names from the command line, else the recipe, else the folder."""
    if metrics is None:
        metrics = section.get("at_target", before.at_target if before else [])
    metrics = [metrics] if isinstance(metrics, str) else metrics or []
    if not isinstance(metrics, (list, tuple)) or not all(isinstance(name, str) and name for name in metrics):
        raise ValueError(f"`at_target` must be a list of logged metrics, got {metrics!r}.")
    if metrics and target_reward is None:
        raise ValueError(f"`at_target` ({', '.join(metrics)}) needs a `target_reward`.")
    return list(dict.fromkeys(metrics))


def _checked_settings(plan: Plan, output_dir: Path) -> dict[str, Any]:
    """Settings that must be equal in all runs. Checks every method's settings up to building the trainer."""
    import tempfile

    from ..methods.registry import build_credit
    from ..model_files import LocalModel, pipeline_fingerprint
    from ..recipe.recipe import Recipe
    from ..trainer.exactness import check_old_policy

    parsed = None
    with tempfile.TemporaryDirectory(prefix="trl-credit-") as folder:
        (Path(folder) / "recipe.yaml").write_text(dump(plan.recipe))
        # The last one is the recipe itself
        for method in [*plan.methods, Method("", "", plan.methods[0].credit)]:
            words = run_arguments(plan, Path(folder), method, plan.asked[1][0])
            parsed = Recipe.read(words, "trl-credit compare")
            if parsed.training.credit is not None:
                check_old_policy(build_credit(parsed.training.credit), parsed.training)
    script_args, training_args, model_args, _ = parsed
    names = {*plan.recipe, *field_names(plan.overrides)}
    settings = {}
    for name in sorted(names):
        owner = next((part for part in parsed if hasattr(part, name)), None)
        if owner is None and name.startswith("no_"):
            name = name.removeprefix("no_")
            owner = next((part for part in parsed if hasattr(part, name)), None)
        settings[name] = getattr(owner, name) if owner is not None else plan.recipe.get(name)
    settings = json.loads(json.dumps(settings, default=str))
    arguments, _ = parsed.prepare()
    if script_args.trainer == "diffusion":
        fingerprint = pipeline_fingerprint(arguments["model"], model_args.model_revision)
        return settings | {"model_fingerprint": fingerprint, "launch": plan.launch}
    model = LocalModel.find(
        model_args.model_name_or_path,
        model_args.model_revision,
        training_args.trust_remote_code,
        field="model_name_or_path",
    )
    return settings | {"model_fingerprint": model.fingerprint(), "launch": plan.launch}


def _seed_words(seeds: list[int], first: int) -> list[str]:
    """Command-line words for seeds: how many, if they are counted from the `first`. A single other one is a list."""
    if seeds == list(range(first, first + len(seeds))):
        return [str(len(seeds))]
    return [json.dumps(seeds)] if len(seeds) == 1 else list(map(str, seeds))


def command_of(plan: Plan, config: Path, output_dir: Path) -> str:
    """Command that makes the whole comparison."""
    tuned = plan.tuning["values"] if plan.tuning else {}
    methods = []
    for method in plan.methods:
        own = {name: value for name, value in method.settings.items() if name not in tuned}
        written = json.dumps({**method.credit, "label": method.label, **({"settings": own} if own else {})})
        methods.append(written if len(method.credit) > 1 or own else method.credit["method"])
    seeds = _seed_words(plan.seeds, 0)
    words = ["trl-credit", "compare", "--config", str(config), "--methods", *methods, "--seeds", *seeds]
    words += ["--output_dir", str(output_dir), "--baseline", plan.baseline]
    if plan.ceiling is not None:
        words += ["--ceiling", plan.ceiling]
    if plan.target_reward is not None:
        words += ["--target_reward", f"{plan.target_reward:g}"]
    if plan.at_target:
        words += ["--at_target", *plan.at_target]
    if plan.tuning:
        listed = [f"{name}={json.dumps(values)}" for name, values in tuned.items()]
        words += ["--tune", *listed, "--tuning_seeds", *_seed_words(plan.tuning["seeds"], FIRST_TUNING_SEED)]
        words += ["--tune_by", plan.tuning["by"]]
    return shlex.join([*words, *plan.launch, *redact_words(plan.overrides)])
