"""Settings: which source wins, and one line that says where a mistake is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from autointerp.config import RunSettings, Section, resolve, to_yaml
from autointerp.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_each_source_beats_the_one_before(file: Callable[[str], Path]) -> None:
    """Six settings; each source gives all but the first of those that the source before it gives."""
    sections = {"sampling": {"window": 200}, "explain": {"max_concurrency": 200}, "score": {"max_concurrency": 200}}
    settings = resolve(
        {"limit": 500, "seed": None},
        base={
            "data.context_length": 100, "sampling.window": 100, "explain.max_concurrency": 100,
            "score.max_concurrency": 100, "limit": 100,
        },
        config=file(yaml.safe_dump({**sections, "limit": 200})),
        environ={
            "AUTOINTERP_EXPLAIN__MAX_CONCURRENCY": "300", "AUTOINTERP_SCORE__MAX_CONCURRENCY": "300",
            "AUTOINTERP_LIMIT": "300", "AUTOINTERP_NO__SUCH": "1", "AUTOINTERP_API_KEY": "secret", "LIMIT": "1",
        },
        sets=["score.max_concurrency=400", "limit=400"],
    )  # fmt: skip
    assert settings.data.tokens == RunSettings().data.tokens
    assert settings.data.context_length == 100
    assert settings.sampling.window == 200
    assert settings.explain.max_concurrency == 300
    assert settings.score.max_concurrency == 400
    assert settings.limit == 500
    assert settings.seed == RunSettings().seed, "a flag that is None was not given"


def test_sections_are_merged_not_replaced(file: Callable[[str], Path]) -> None:
    settings = resolve(
        {}, base={"score.llm": "m", "score.client": "fake"}, config=file("score:\n  client: hf\n"), environ={}
    )
    assert (settings.score.llm, settings.score.client) == ("m", "hf")


def test_options_of_scorers(file: Callable[[str], Path]) -> None:
    path = file("score:\n  methods: [detection]\n  options: {detection: {windows: 20}}\n")
    settings = resolve({}, config=path, sets=["score.options.detection.per_request=1"], environ={})
    assert settings.score.options == {"detection": {"windows": 20, "per_request": 1}}
    assert settings.score.methods == ("detection",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("explain:\n  llmm: x\n", "config error at explain.llmm: "),
        ("explian: {}\n", "config error at explian: "),
        ("data:\n  tokens: many\n", "config error at data.tokens: "),
        ("data:\n  tokens: 0\n", "config error at data.tokens: "),
        ("subject:\n  dtype: float8\n", "config error at subject.dtype: "),
        ("max_failed: 1.5\n", "config error at max_failed: "),
        ("explain:\n", "config error at explain: "),
        ("score:\n  options: {surprisal: 3}\n", "config error at score.options.surprisal: "),
        ("1: 2\n", "config error at 1: "),
        ("- a\n- b\n", "has to hold settings by name, not a list"),
        ("just text", "has to hold settings by name, not a str"),
        ("a: [1, 2\nb: }\n", "run.yaml' is no valid YAML: "),
        ("a: 1\n\tb: 2\n", "line 2"),
    ],
)
def test_a_mistake_gives_one_line_with_its_place(file: Callable[[str], Path], text: str, said: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve({}, config=file(text), environ={})
    assert said in str(raised.value) and "\n" not in str(raised.value) and raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["seed"], "--set wants name=value, not 'seed'"),
        (["seed=x"], "config error at seed: "),
        (["data.token=3"], "config error at data.token: "),
        (["seed.deep=3"], "config error at seed: "),
        (["explain=3", "explain.llm=x"], "config error at explain.llm: 'explain' is a value, not a section"),
        (["=5"], "config error at "),
    ],
)
def test_a_bad_set(sets: list[str], said: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve({}, sets=sets, environ={})
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_bad_variable_or_flag() -> None:
    with pytest.raises(UserError, match=r"config error at data\.tokens"):
        resolve({}, environ={"AUTOINTERP_DATA__TOKENS": "lots"})
    with pytest.raises(UserError, match=r"config error at data\.tokens"):
        resolve({"data.tokens": -1}, environ={})
    with pytest.raises(UserError, match=r"cannot read --config '.*none\.yaml': No such file"):
        resolve({}, config=Path("/none.yaml"), environ={})


def test_values_of_set_are_yaml() -> None:
    settings = resolve(
        {}, sets=["score.methods=[detection, embedding]", "score.llm=a=b", "limit=null", "max_failed=1e-1"], environ={}
    )
    assert (settings.score.methods, settings.score.llm) == (("detection", "embedding"), "a=b")
    assert settings.limit is None and settings.max_failed == 0.1


def test_an_empty_file_and_a_round_trip(file: Callable[[str], Path]) -> None:
    assert resolve({}, config=file("# nothing\n"), environ={}) == RunSettings()
    settings = resolve({"limit": 3, "score.options": {"surprisal": {"windows": 2}}, "explain.llm": "é"}, environ={})
    assert resolve({}, config=file(to_yaml(settings)), environ={}) == settings != RunSettings()


def test_settings_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunSettings().seed = 3  # type: ignore[misc]


def test_sources_are_left_as_they_are() -> None:
    base = {"score.options": {"surprisal": {"windows": 20}}}
    resolve({}, base=base, sets=["score.options.surprisal.windows=7"], environ={})
    assert base == {"score.options": {"surprisal": {"windows": 20}}}


def test_every_setting_is_documented() -> None:
    sections = {name for name, value in RunSettings() if isinstance(value, Section)}
    models = [RunSettings, *(type(getattr(RunSettings(), name)) for name in sections)]
    fields = [(name, field) for model in models for name, field in model.model_fields.items() if name not in sections]
    assert len(fields) > 30 and "study" in sections
    assert [name for name, field in fields if not field.description] == []
