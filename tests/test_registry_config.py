"""Registries, seeds and configs: names, near names, overrides, types, draws by (seed, stream, index)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from repa_eval.config import describe, flatten, from_dict, full_key, nest, option, parse_overrides, to_dict
from repa_eval.errors import Failure, UserError, first_line, unknown
from repa_eval.interfaces.architecture import MODELS, find_preset
from repa_eval.interfaces.extractor import EXTRACTORS
from repa_eval.interfaces.method import METHODS
from repa_eval.interfaces.teacher import TEACHERS, load_teacher, split_names
from repa_eval.plugin_files import installed
from repa_eval.registry import Registry
from repa_eval.runtime import seeding
from repa_eval.train.recipe import builtin_recipes, read_recipe, resolve

# --- registries


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[Callable[[], int]]:
    """A registry whose package holds two modules and, in a folder, shared code that must not be imported."""
    package = tmp_path / "things"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "shared").mkdir()
    (package / "shared" / "code.py").write_text("raise AssertionError")
    (tmp_path / "contract.py").write_text(
        "from repa_eval.registry import Registry\nTHINGS = Registry('thing', 'things')"
    )
    for name in ("alpha", "beta"):
        (package / f"{name}.py").write_text(
            f"from contract import THINGS\n@THINGS.register('{name}')\ndef make():\n    return '{name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] in ("things", "contract")]:
        monkeypatch.delitem(sys.modules, name)
    import contract

    return contract.THINGS


def test_the_folder_is_imported_at_the_first_lookup(registry: Registry) -> None:
    assert registry.modules() == ["alpha", "beta"]
    assert "things.alpha" not in sys.modules
    assert registry.get("beta")() == "beta"
    assert registry.names() == ["alpha", "beta"]
    assert [name for name, _ in registry.items()] == ["alpha", "beta"]


def test_the_decorator_hands_back_what_it_got(registry: Registry) -> None:
    def mine() -> int:
        return 1

    assert registry.register("mine")(mine) is mine


def test_duplicates_are_refused(registry: Registry) -> None:
    registry.names()
    with pytest.raises(
        UserError, match=r"thing 'alpha' is registered twice: by .*alpha\.py and by .*test_registry_config"
    ):
        registry.register("alpha")(test_duplicates_are_refused)
    assert registry.get("alpha")() == "alpha"


def test_an_unknown_name_lists_near_and_all(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"unknown thing 'alfa'; did you mean 'alpha'\? \(known: alpha, beta\)"):
        registry.get("alfa")
    with pytest.raises(UserError, match=r"unknown thing 'zzzz' \(known: alpha, beta\)"):
        registry.get("zzzz")


def test_a_file_of_the_users(registry: Registry, tmp_path: Path) -> None:
    mine = tmp_path / "gamma.py"
    mine.write_text("from contract import THINGS\n@THINGS.register('gamma')\ndef make():\n    return 3\n")
    assert registry.load_file(mine) == "gamma"
    assert registry.load_file(str(mine)) == "gamma"  # again: no duplicate
    assert registry.get("gamma")() == 3
    with pytest.raises(UserError, match=r"thing file 'none\.py' does not exist"):
        registry.load_file("none.py")
    two = tmp_path / "two.py"
    two.write_text(mine.read_text().replace("gamma", "d") + mine.read_text().replace("gamma", "e"))
    with pytest.raises(UserError, match="must register exactly one thing; it registers d, e"):
        registry.load_file(two)


def test_a_plug_in(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugged.py").write_text("from contract import THINGS\nTHINGS.register('plugged')(lambda: 4)\n")
    entry = EntryPoint("mine", "plugged", "some.group")
    monkeypatch.setattr(registry, "group", "some.group")
    monkeypatch.setattr(installed, "entry_points", lambda group: [entry] * (group == "some.group"))
    assert registry.get("plugged")() == 4


@pytest.mark.parametrize("registry", [METHODS, TEACHERS, EXTRACTORS, MODELS], ids=lambda registry: registry.kind)
def test_plug_ins_have_a_group(registry: Registry) -> None:
    assert registry.group == f"repa_eval.{registry.packages[0].split('.')[-1]}"
    assert registry.names()


def test_presets() -> None:
    sizes = {preset for _, architecture in MODELS.items() for preset in architecture.presets}
    assert {f"SiT-{size}/{patch}" for size in ("S", "B", "L", "XL") for patch in (2, 4, 8)} <= sizes
    architecture, config = find_preset("SiT-XL/2")
    assert (architecture.name, config.depth, config.hidden_size, config.num_heads) == ("SiT", 28, 1152, 16)
    with pytest.raises(UserError, match="unknown model 'SiT-M/2'; did you mean 'SiT-"):
        find_preset("SiT-M/2")


def test_names_of_teachers() -> None:
    assert split_names("a, b,,c") == ["a", "b", "c"]
    assert split_names("") == split_names("None") == []
    with pytest.raises(UserError, match="unknown teacher 'digits-vt'; did you mean 'digits-vit'"):
        load_teacher("digits-vt")


def test_errors() -> None:
    assert (UserError("x").exit_code, Failure("x").exit_code) == (2, 1)
    assert isinstance(Failure("x"), ValueError)
    assert str(unknown("key", "a", [])) == "unknown key 'a' (known: none)"
    assert [first_line(ValueError(text)) for text in ("a\nb", "")] == ["a", "ValueError"]


# --- config


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = option(0.1, help="a rate", least=0, most=1)
    size: int = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    name: str = option("a", help="a name", choices=("a", "b"))
    size: int = option(8, help="a size", least=1)
    flag: bool = False
    maybe: int | None = None
    dims: tuple[int, ...] = option((), help="some sizes", least=0)
    inner: Inner = field(default_factory=Inner)


def test_defaults_and_round_trip() -> None:
    config = from_dict(Config(), {"size": 4, "dims": [1, 2], "inner": {"rate": 0.5}})
    assert config == Config(size=4, dims=(1, 2), inner=Inner(rate=0.5))
    assert to_dict(config) == {
        "name": "a", "size": 4, "flag": False, "maybe": None, "dims": [1, 2], "inner": {"rate": 0.5, "size": 3},
    }  # fmt: skip
    assert from_dict(Config(), to_dict(config)) == config
    assert from_dict(config, {}) is not None
    assert from_dict(config, {}) == config


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"sise": 1}, "unknown key 'sise'; did you mean 'size'"),
        ({"inner": {"rat": 1}}, r"unknown key 'inner\.rat'; did you mean 'inner\.rate'"),
        ({"inner": 3}, "inner: expected keys and values, not 3"),
        ({"size": "big"}, "size: 'big' is not a whole number"),
        ({"size": 1.5}, "size: 1.5 is not a whole number"),
        ({"size": True}, "size: True is not a whole number"),
        ({"size": None}, "size: None is not a whole number"),
        ({"size": float("inf")}, "size: inf is not a whole number"),
        ({"size": 0}, "size: 0 is not allowed; it is at least 1"),
        ({"size": 2**63}, "size: 9223372036854775808 is not a whole number"),
        ({"size": 1e30}, r"size: 1e\+30 is not a whole number"),
        ({"inner": {"rate": "inf"}}, r"inner\.rate: 'inf' is not a number"),
        ({"inner": {"rate": 2.0}}, r"inner\.rate: 2.0 is not allowed; it is at most 1"),
        ({"dims": [1, -1]}, "dims: -1 is not allowed; it is at least 0"),
        ({"flag": "yes"}, "flag: 'yes' is not true or false"),
        ({"flag": 1}, "flag: 1 is not true or false"),
        ({"name": "c"}, "name: 'c' is not allowed; choose one of a, b"),
        ({"maybe": "x"}, "maybe: 'x' is not a whole number"),
        ({"dims": ["x"]}, "dims: 'x' is not a whole number"),
        ({"inner": {"rate": "fast"}}, r"inner\.rate: 'fast' is not a number"),
        ({"inner": {"rate": -1}}, r"inner\.rate: -1.0 is not allowed; it is at least 0"),
        ({"inner": {"rate": "nan"}}, r"inner\.rate: 'nan' is not a number"),
    ],
)
def test_values_are_checked(given: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        from_dict(Config(), given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": "4"}, Config(size=4)),
        ({"size": 4.0}, Config(size=4)),
        ({"size": "1e3"}, Config(size=1000)),
        ({"size": 2**53 + 1}, Config(size=9007199254740993)),
        ({"inner": {"rate": "1e-4"}}, Config(inner=Inner(rate=1e-4))),  # YAML reads 1e-4 as a string
        ({"inner": {"rate": 1}}, Config(inner=Inner(rate=1.0))),
        ({"maybe": None}, Config()),
        ({"maybe": 3}, Config(maybe=3)),
        ({"dims": 3}, Config(dims=(3,))),
        ({"dims": []}, Config()),
        ({"flag": True}, Config(flag=True)),
    ],
)
def test_values_are_converted(given: dict[str, object], expected: Config) -> None:
    assert from_dict(Config(), given) == expected
    found = from_dict(Config(), given)
    assert type(found.size) is int
    assert type(found.inner.rate) is float


def test_no_and_off_are_words_where_words_are_expected() -> None:
    @dataclass(frozen=True)
    class Precision:
        mixed_precision: str = "bf16"

    assert from_dict(Precision(), parse_overrides(["mixed_precision=no"])).mixed_precision == "no"


def test_a_mutable_default_is_refused() -> None:
    with pytest.raises(TypeError, match="must be immutable"):
        option([], help="x")


def test_overrides() -> None:
    assert parse_overrides(["a=1", "b.c=x=y", "d=[1, 2]", "e=", "f=null", "g=1e-4", "h=true"]) == {
        "a": 1, "b.c": "x=y", "d": [1, 2], "e": "", "f": None, "g": "1e-4", "h": True,
    }  # fmt: skip
    for word in ("a", "=3", ""):
        with pytest.raises(UserError, match="an override is written key=value"):
            parse_overrides([word])
    for text in ("{", "2024-02-30", "0b_", "!!int abc", "[" * 10_000, "!!python/object:os.system x"):
        with pytest.raises(UserError, match="cannot read the value of") as caught:
            parse_overrides([f"a={text}"])
        assert "\n" not in str(caught.value)


def test_bare_keys() -> None:
    tree = to_dict(Config())
    assert full_key("rate", tree) == "inner.rate"
    assert full_key("size", tree) == "size"  # an exact key wins
    assert full_key("inner.size", tree) == "inner.size"
    with pytest.raises(UserError, match=r"unknown key 'rat'; did you mean 'rate'"):
        full_key("rat", tree)
    with pytest.raises(UserError, match=r"key 'x' is not unique: write one of a\.x, b\.x"):
        full_key("x", {"a": {"x": 1}, "b": {"x": 2}})
    with pytest.raises(UserError, match="unknown key 'inner'"):
        full_key("inner", tree)


def test_nest_is_the_inverse_of_flatten() -> None:
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": [3]}
    assert flatten(tree) == {"a.b.c": 1, "a.d": 2, "e": [3]}
    assert nest(flatten(tree)) == tree


def test_describe() -> None:
    described = {key: (default, text) for key, default, text in describe(Config())}
    assert described["inner.rate"] == (0.1, "a rate")
    assert set(described) == set(flatten(to_dict(Config())))


# --- recipes


def test_default_then_file_then_override() -> None:
    tree = {"method": "repa", "model": "SiT-digits/2", "batch_size": 64, "options": {"proj_coeff": 0.3}}
    recipe = resolve(tree, {"proj_coeff": 0.7})
    assert recipe.settings.batch_size == 64
    assert recipe.settings.seed == 0
    assert recipe.method.proj_coeff == 0.7
    assert recipe.method.encoder_depth == 8
    assert resolve(tree, {"options.proj_coeff": 0.7}) == recipe


def test_another_method_keeps_what_it_knows() -> None:
    tree = read_recipe("digits-repa")
    tree["options"]["cfg_prob"] = 0.25
    recipe = resolve(tree, {"method": "vanilla"})
    assert recipe.method == METHODS.get("vanilla")(cfg_prob=0.25)
    assert recipe.name == "digits-repa-vanilla"
    assert resolve(tree, {"method": "repa"}).name == "digits-repa"


def test_another_model_brings_its_own_sizes() -> None:
    tree = {**read_recipe("digits-repa"), "architecture": {"depth": 2}}
    assert resolve(tree).architecture.depth == 2
    assert resolve(tree, {"model": "SiT-B/2"}).architecture.depth == 12


@pytest.mark.parametrize("name", list(builtin_recipes()))
def test_shipped_recipes_resolve(name: str) -> None:
    recipe = resolve(read_recipe(name))
    assert recipe.name == name
    assert recipe.settings.description
    assert recipe.settings.max_steps % recipe.settings.checkpoint_every == 0


@pytest.mark.parametrize(
    "name",
    ["../../escaped", "/tmp/absolute", "..", ".hidden", "a/b", "imagenet/../x", "imagenet//x", "a\\b", "", "-rf", "~x",
     "a\nb", "\x1b[31m", " a", "x" * 101, ["a"], {"a": 1}, None, True],
)  # fmt: skip
def test_the_name_of_a_recipe_is_one_folder_name(name: object) -> None:
    with pytest.raises(UserError, match="is not the name of a folder"):
        resolve({**read_recipe("digits-vanilla"), "name": name})


@pytest.mark.parametrize("name", ["mine", "lr-1e-4 b=2", "v1.5", "imagenet/repa", "größe", 7])
def test_a_folder_name_is_a_name(name: object) -> None:
    assert resolve({**read_recipe("digits-vanilla"), "name": name}).name == str(name)


def test_a_recipe_names_no_code() -> None:
    with pytest.raises(UserError, match="unknown extractor 'json:loads'"):
        resolve(read_recipe("digits-vanilla"), {"evaluation.extractor": "json:loads"})


@pytest.mark.parametrize("key", ["name", "method", "model", "options", "architecture", "seed", "description", "optim"])
def test_a_value_that_repeats_itself_is_refused_in_few_letters(key: str) -> None:
    value: list[object] = ["x"] * 10
    for _ in range(12):
        value = [value] * 10
    with pytest.raises(UserError) as refused:
        resolve({**read_recipe("digits-vanilla"), key: value})
    assert len(str(refused.value)) < 1000


# --- draws


def test_draws_depend_on_seed_stream_and_index_alone() -> None:
    whole = seeding.normal(seeding.generators(3, "noise", range(8)), (2, 2))
    parts = [seeding.normal(seeding.generators(3, "noise", part), (2, 2)) for part in (range(3), range(3, 8))]
    assert torch.equal(whole, torch.cat(parts))
    assert len(whole.flatten(1).unique(dim=0)) == 8
    for other in (seeding.generators(4, "noise", range(8)), seeding.generators(3, "label", range(8))):
        assert not torch.equal(seeding.normal(other, (2, 2)), whole)
    torch.manual_seed(99)
    assert torch.equal(seeding.normal(seeding.generators(3, "noise", range(8)), (2, 2)), whole)


@pytest.mark.parametrize("shape", [(), (3,), (15,), (16,), (2, 9)])
def test_draws_are_those_of_torch(shape: tuple[int, ...]) -> None:
    for draw, of_torch in ((seeding.normal, torch.randn), (seeding.uniform, torch.rand)):
        expected = [of_torch(shape, generator=generator) for generator in seeding.generators(1, "x", range(3))]
        assert torch.equal(draw(seeding.generators(1, "x", range(3)), shape), torch.stack(expected))


def test_derived_seeds_are_fixed_and_do_not_run_into_each_other() -> None:
    assert seeding.derive(0, "weights") == 2934036865011653446
    parts = [(0, "a"), ("0", "a"), (0, "a", 0), ("a", 0), (0, "a0"), (0, "a", "0")]
    assert len({seeding.derive(*each) for each in parts}) == len(parts)
    assert all(0 <= seeding.derive(*each) < 2**63 for each in parts)


def test_distributions() -> None:
    gens = seeding.generators(0, "x", range(4000))
    assert float(seeding.normal(gens, ()).std()) == pytest.approx(1, abs=0.05)
    draws = seeding.uniform(gens)
    assert 0 <= float(draws.min()) < 0.01 < 0.99 < float(draws.max()) < 1
    assert seeding.integers(gens, 3).unique().tolist() == [0, 1, 2]
    assert sorted(seeding.permutation(50, 1, "x").tolist()) == list(range(50))
    assert not torch.equal(seeding.permutation(50, 1, "x"), seeding.permutation(50, 2, "x"))


def test_a_value_that_refers_to_itself_is_told_in_few_letters() -> None:
    laughs = parse_overrides(["a=[&a [x,x], &b [*a,*a,*a,*a], &c [*b,*b,*b,*b], &d [*c,*c,*c,*c], [*d,*d,*d,*d]]"])["a"]
    for _ in range(60):
        laughs = [laughs] * 9
    for name in ("mixed_precision", "steps"):
        with pytest.raises(UserError) as caught:
            from_dict(Short(), {name: laughs})
        assert len(str(caught.value)) < 400


@dataclass(frozen=True)
class Short:
    """Options of a test."""

    mixed_precision: str = "no"
    steps: int = 1
