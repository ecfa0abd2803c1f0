"""Methods, seeds and folders of a comparison."""

import json
import shlex

import pytest
from helpers import ROOT

from trl_credit import build_credit
from trl_credit._util.files import RunFolderError
from trl_credit.comparison import cli, plan
from trl_credit.comparison.plan import (
    make_plan,
    parse_methods,
    parse_seeds,
    read_recipe,
    run_folder,
)
from trl_credit.comparison.run import missing


CONFIG = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), "--methods", "uniform"]
SHARP = {"method": "dgpo", "temperature": 0.001}


@pytest.mark.parametrize(
    ("value", "seeds"),
    [(3, [0, 1, 2]), ([4], [4]), ([5, 2], [5, 2]), ("3", [0, 1, 2]), ("[4]", [4]), (["5", "2"], [5, 2])],
)
def test_seeds(value, seeds):
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize("value", [0, -1, True, [], [1, 1], ["a"], [-1], "three", None])
def test_bad_seeds(value):
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(value)


def test_labels_tell_methods_apart():
    methods, asked = parse_methods(["uniform", "dgpo", json.dumps(SHARP)])
    assert (
        [method.label for method in methods] == asked == ["uniform", "dgpo temperature=0.5", "dgpo temperature=0.001"]
    )
    assert [method.folder for method in methods] == ["uniform", "dgpo-temperature=0.5", "dgpo-temperature=0.001"]
    assert methods[2].credit["temperature"] == 0.001
    (named,), _ = parse_methods([SHARP | {"label": "sharp / DGPO"}])
    assert (named.label, named.folder) == ("sharp / DGPO", "sharp-DGPO")


LIST = {"method": ["gcpo", SHARP], "label": "both", "settings": {"learning_rate": 1e-5}}
LISTS = [
    (LIST, "both", {"learning_rate": 1e-5}),
    (json.dumps(LIST), "both", {"learning_rate": 1e-5}),
    ("{method: [gcpo, {method: dgpo, temperature: 1e-3}], label: both, settings: {learning_rate: 1e-5}}", "both", None),
    ({"method": ["gcpo", SHARP]}, "gcpo + dgpo", {}),
    (["gcpo", SHARP], "gcpo + dgpo", {}),
    ("[gcpo, {method: dgpo, temperature: 1e-3}]", "gcpo + dgpo", {}),
]


@pytest.mark.parametrize(("written", "label", "settings"), LISTS, ids=str)
def test_a_list_may_have_a_label_and_settings(written, label, settings, tmp_path):
    (uniform, both), asked = parse_methods(["uniform", written])
    assert both.credit == build_credit(["gcpo", SHARP]).to_dict()
    assert both.label == asked[1] == label + (" learning_rate=1e-05" if settings and label != "both" else "")
    assert both.settings == (LIST["settings"] if settings is None else settings)
    assert (uniform.label, uniform.settings) == ("uniform", {})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"compare: {{methods: [uniform, {written if isinstance(written, str) else json.dumps(written)}]}}\n"
    )
    cli.check_early(cli.parser().parse_args(["--config", str(recipe)]), [])


def test_folders_differ_on_disks_that_know_no_case():
    methods, _ = parse_methods([{"method": "gcpo", "label": "a"}, {"method": "dgpo", "label": "A"}])
    assert [method.folder for method in methods] == ["a", "A-2"]


def test_a_method_keeps_its_folder_when_others_come():
    first, _ = parse_methods(["uniform", "dgpo", {"method": "gcpo", "label": "contrast"}])
    methods, asked = parse_methods([SHARP, "uniform"], earlier=first)
    assert [method.label for method in methods] == [
        "uniform",
        "dgpo temperature=0.5",
        "contrast",
        "dgpo temperature=0.001",
    ]
    assert [method.folder for method in methods] == ["uniform", "dgpo", "contrast", "dgpo-temperature=0.001"]
    assert asked == ["dgpo temperature=0.001", "uniform"]
    again, _ = parse_methods(["uniform", "dgpo", "gcpo", SHARP], earlier=methods)
    assert again == methods


def test_the_recipes_own_method_by_name_has_its_parameters():
    (uniform, gcpo), _ = parse_methods(["uniform", "gcpo"], {"method": "gcpo", "negative_prompt": "!{prompt}"})
    assert uniform.credit == {"method": "uniform"}
    assert gcpo.credit["negative_prompt"] == "!{prompt}"
    (_, teacher), _ = parse_methods(["uniform", "teacher"], {"method": "teacher", "model": "other"})
    assert teacher.credit["model"] == "other"


def test_the_recipes_own_method_needs_no_parameters_on_the_command_line(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("credit: {method: shuffled, of: gcpo}\n")
    arguments = cli.parser().parse_args(["--config", str(recipe), "--methods", "uniform", "shuffled"])
    cli.check_early(arguments, [])
    recipe.write_text("credit:\n")
    with pytest.raises(ValueError, match="`credit` is empty"):
        cli.check_early(arguments, [])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "No methods"),
        (None, "No methods"),
        (["dgpoo"], "Did you mean 'dgpo'"),
        (["uniform", "uniform"], "listed twice"),
        (["uniform", {"method": "uniform", "label": "x"}], "listed twice"),
        ([{"method": "dgpo", "temperatur": 1}], "Did you mean 'temperature'"),
        (['{"method": dgpo'], "not valid JSON"),
        ([{"method": "gcpo", "label": "uniform"}, "uniform"], "Two methods have the label 'uniform'"),
        ([{"method": "gcpo", "label": 3}], "must be text"),
        ([{"method": ["gcpo"], "label": " "}], "must be text"),
        ([{"method": ["gcpo", "dgop"], "label": "x"}], "part 2 of the list: Unknown credit method 'dgop'"),
        ([{"method": [], "label": "x"}], "empty list"),
        ([{"method": ["gcpo", "otb"], "settings": {"seed": 3}}], "'seed' cannot differ"),
        (
            [{"method": ["gcpo", "otb"], "top_mass": 0.5}],
            r"`top_mass` stands beside a list of methods, where only `label` and `settings` can.*\[{method: NAME, top_mass",
        ),
        (
            [{"method": ["gcpo", "teacher"], "label": "x", "advantage": 0.5}],
            r'`advantage` belongs to .mix.*{"method": "mix", "parts": \["gcpo", "teacher"\], "advantage": 0.5}',
        ),
        ([{"method": "uniform", "settings": {"max_steps": 3}}], "'max_steps' cannot differ between the methods"),
    ],
)
def test_bad_methods(methods, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(methods)


def test_the_recipes_section(comparison_recipe):
    path = comparison_recipe(
        compare={"methods": ["uniform", SHARP], "seeds": [3, 5], "target_reward": 0.9, "ceiling": "dgpo"}
    )
    fields, section = read_recipe(path)
    assert "compare" not in fields
    assert section["seeds"] == [3, 5]
    found = make_plan(path, path.parent / "out")
    assert [method.label for method in found.methods] == ["uniform", "dgpo"]
    assert (found.seeds, found.baseline, found.ceiling, found.target_reward) == ([3, 5], "uniform", "dgpo", 0.9)
    assert "--ceiling dgpo" in found.command
    # A command's methods need not have the recipe's ceiling
    assert make_plan(path, path.parent / "out", methods=["uniform", "gcpo"]).ceiling is None
    assert make_plan(path, path.parent / "out", baseline="dgpo").ceiling is None
    found = make_plan(
        path,
        path.parent / "out",
        methods=["uniform", "gcpo"],
        seeds=2,
        baseline="gcpo",
        ceiling="uniform",
        target_reward=0.5,
    )
    assert [method.label for method in found.methods] == ["uniform", "gcpo"]
    assert (found.seeds, found.baseline, found.target_reward) == ([0, 1], "gcpo", 0.5)
    assert not {"credit", "seed", "output_dir"} & set(found.recipe)
    assert found.settings["learning_rate"] == 1e-3
    assert "credit" not in found.settings
    assert not (path.parent / "out").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"compare": {"method": ["uniform"]}}, {}, "Did you mean 'methods'"),
        ({"compare": ["uniform"]}, {}, "`compare` must be a mapping"),
        ({"max_step": 3}, {}, "Did you mean 'max_steps'"),
        ({}, {"overrides": ["--max_stepz", "4"]}, "Did you mean 'max_steps'"),
        ({}, {"overrides": ["--credit", "gcpo"]}, "use --methods"),
        ({}, {"overrides": ["--seed=3"]}, "use --seeds"),
        ({}, {"overrides": ["--logging-steps", "5"]}, "`logging_steps` cannot be set"),
        ({}, {"baseline": "dgpo"}, "not among the methods"),
        ({}, {"ceiling": "oracel"}, "`ceiling`: 'oracel' is not among the methods"),
        (
            {"compare": {"methods": ["uniform", "gcpo"], "ceiling": "uniform"}},
            {},
            "`ceiling` and `baseline` are both 'uniform'",
        ),
        ({"compare": {"methods": ["uniform", "gcpo"], "ceiling": "oracel"}}, {}, "`ceiling`: 'oracel' is not among"),
        ({"compare": {"target_reward": "high"}}, {}, "`target_reward` must be a number"),
        ({"compare": {"at_target": ["entropy"]}}, {}, r"`at_target` \(entropy\) needs a `target_reward`"),
        ({"compare": {"at_target": 5, "target_reward": 1}}, {}, "`at_target` must be a list of logged metrics"),
        ({"compare": {"at_target": [3], "target_reward": 1}}, {}, "`at_target` must be a list of logged metrics"),
        ({"importance_sampling_level": "sequence"}, {}, "cancels the token credit of 'gcpo'"),
        ({"max_steps": 0}, {}, "`max_steps` must be"),
        ({"reward_funcs": ["no.such.reward"]}, {}, "no.such.reward"),
        ({"model_name_or_path": "./missing"}, {}, "no folder"),
        ({"eval": {"task": ["aime24"]}}, {}, "Did you mean 'tasks'"),
    ],
)
def test_everything_is_checked_before_anything_runs(comparison_recipe, tmp_path, changes, arguments, message):
    methods = {"methods": ["uniform", "gcpo"]} if "ceiling" not in changes.get("compare", {}) else {}
    with pytest.raises((ValueError, TypeError), match=message):
        make_plan(comparison_recipe(**changes), tmp_path / "out", **methods, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_grows_but_is_of_one_experiment(comparison_recipe, tmp_path):
    path, out = comparison_recipe(), tmp_path / "out"
    out.mkdir()
    first = make_plan(path, out, methods=["gcpo", "dgpo"], seeds=2, baseline="dgpo")
    plan.write_plan(out, first)
    assert plan.read_plan(out).to_dict() == first.to_dict()
    grown = make_plan(path, out, methods=[SHARP, "dgpo"], seeds=[1, 4])
    assert [method.label for method in grown.methods] == ["gcpo", "dgpo temperature=0.5", "dgpo temperature=0.001"]
    assert (grown.seeds, grown.baseline) == ([0, 1, 4], "dgpo temperature=0.5")
    assert [(method.label, seed) for method, seed in missing(grown, out)] == [
        ("dgpo temperature=0.001", 1),
        ("dgpo temperature=0.5", 1),
        ("dgpo temperature=0.001", 4),
        ("dgpo temperature=0.5", 4),
    ]
    done = run_folder(out, grown.method("dgpo temperature=0.5"), 1)
    assert done == out / "runs" / "dgpo" / "seed-1"
    done.mkdir(parents=True)
    (done / "run.json").write_text("{}")
    assert len(missing(grown, out)) == 3
    with pytest.raises(RunFolderError, match=r"`max_steps`: 3 there, 4 now"):
        make_plan(path, out, methods=["gcpo"], overrides=["--max_steps", "4"])
    with pytest.raises(RunFolderError, match=r"`launch`: \[\] there"):
        make_plan(path, out, methods=["gcpo"], launch=["--num_processes", "2"])
    # The same value from elsewhere is no difference
    make_plan(path, out, methods=["gcpo"], overrides=["--max_steps", "3"])


def test_a_folder_that_is_none(tmp_path, comparison_recipe):
    with pytest.raises(RunFolderError, match=r"no plan\.json"):
        plan.read_plan(tmp_path)
    (tmp_path / "plan.json").write_text('{"format": 1}')
    with pytest.raises(RunFolderError, match="not what `trl-credit compare` writes"):
        plan.read_plan(tmp_path)


def test_the_command_makes_the_plan_again(comparison_recipe, tmp_path):
    path, out = comparison_recipe(), tmp_path / "out"
    found = make_plan(
        path, out, methods=["uniform", SHARP], seeds=2, target_reward=0.5, at_target=["entropy", "kl"],
        overrides=["--beta", "0"],
    )  # fmt: skip
    words = shlex.split(found.command)[2:]
    arguments, overrides = cli.parser().parse_known_args(words)
    assert overrides == ["--beta", "0"]
    again = make_plan(
        path, out, overrides, arguments.methods, arguments.seeds[0], arguments.baseline, arguments.target_reward,
        arguments.at_target,
    )  # fmt: skip
    assert again == found


def test_a_single_seed_is_written_as_a_list(comparison_recipe, tmp_path):
    found = make_plan(comparison_recipe(), tmp_path / "out", methods=["uniform"], seeds=[7])
    arguments, _ = cli.parser().parse_known_args(shlex.split(found.command)[2:])
    assert arguments.seeds == ["[7]"]
    assert parse_seeds(arguments.seeds[0]) == found.seeds == [7]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config"),
        (["reprt"], "unknown command 'reprt'"),
        (["--config", "x.yaml", "--jobs", "0"], "`--jobs` must be at least 1"),
        (["--config", "x.yaml", "--jobs", "2", "--num_processes", "2"], "one after the other"),
        ([*CONFIG, "--seeds", "many"], "`seeds` must be a whole number, at least 1, got 'many'"),
        ([*CONFIG, "--seeds", "[1, x]"], "`seeds` must be a number of seeds or a list of seeds"),
        (["--config", "x.yaml", "--seedz", "1"], "unknown option '--seedz'. Did you mean '--seeds'?"),
        (["report", "no/such/folder"], "no plan.json"),
        (["no/such/recipe.yaml", "--methods", "uniform"], "cannot read 'no/such/recipe.yaml'"),
        ([*CONFIG, "--credit", "gcpo"], "`credit` is what a comparison varies: use --methods"),
        ([*CONFIG, "--seeds", "1,2"], "`seeds`: write several seeds as a list, '[1, 2]', or with spaces"),
        ([*CONFIG, "--tune", "=1,2"], "`tune`: write FIELD=VALUE,VALUE"),
        ([*CONFIG[:3], "gcpo,dgpo"], "--methods gcpo dgpo"),
        ([*CONFIG, "gcpoo"], "Unknown credit method 'gcpoo'. Did you mean 'gcpo'?"),
        ([*CONFIG, '{"method": "gcpo", "sharpnes": 3, "label": "x"}'], "has no parameter 'sharpnes'"),
        ([*CONFIG, '{"method": ["gcpo", "otb"], "sharpness": 3, "label": "x"}'], "`sharpness` stands beside a list"),
        (
            [*CONFIG, '{"method": "gcpo", "learning_rate": 2.0e-4}'],
            "`learning_rate` is a field of the recipe, not a parameter of 'gcpo'. For this method only: "
            '{"method": "gcpo", "settings": {"learning_rate": 0.0002}}. To try several values: --tune learning_rate=VALUE',
        ),
        (
            [*CONFIG, '["gcpo", {"method": "otb", "beta": 0.1}]'],
            "`beta` is a field of the recipe, not a parameter of 'otb'",
        ),
        (
            [*CONFIG, '{"method": "gcpo", "num_generations": 4}'],
            "'gcpo' has no parameter 'num_generations'",
        ),  # of all alike
        ([*CONFIG, "--learning_rat", "1"], "Unknown field `learning_rat` on the command line. Did you mean"),
        (
            [*CONFIG, "--tune", "learning_rat=1,2"],
            "Unknown field `learning_rat` in `tune`. Did you mean 'learning_rate'?",
        ),
        ([*CONFIG, "--tune", "learning_rate=1"], "needs at least two different values"),
        ([*CONFIG, "--tune", "max_steps=1,2"], "`tune`: 'max_steps' cannot differ"),
        ([*CONFIG, "--tune", "beta=0,1", "--seeds", "[7]", "--tuning_seeds", "[7]"], "`seeds` (7) share 7"),
        ([*CONFIG, "--tuning_seeds", "3"], "`tuning_seeds` has no effect without `tune`"),
    ],
)
def test_wrong_use_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(words)
    assert error.value.code == 2
    out = capsys.readouterr()
    assert message in out.err
    assert len(out.err.strip().splitlines()) == 1
    assert not out.out
