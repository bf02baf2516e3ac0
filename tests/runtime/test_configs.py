import pytest

from maskx_d2.runtime.configs import check_yaml, config_file, read_yaml

LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize("base", ["laughs.yaml", "[small.yaml, laughs.yaml]"])
def test_a_config_that_grows_as_it_is_read_is_refused_as_the_base_of_another_too(tmp_path, base):
    (tmp_path / "laughs.yaml").write_text(LAUGHS)
    (tmp_path / "small.yaml").write_text("a: 1")
    (tmp_path / "config.yaml").write_text(f"_BASE_: {base}\nb: 2")
    with pytest.raises(ValueError, match=r"laughs.yaml expands to 4e\+11 values, expected at most 100,000"):
        check_yaml(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("_BASE_: config.yaml", ValueError, "config.yaml is nested too deep, or within itself"),
        ("_BASE_: absent.yaml", FileNotFoundError, "config.yaml names _BASE_ absent.yaml, which"),
        ("a: &a [*a]", ValueError, "config.yaml is nested too deep, or within itself"),
        ("a: [", ValueError, r"config .*config.yaml: "),
        ("_BASE_: /etc/passwd", ValueError, r"config /etc/passwd(: | is not a config, expected keys with)"),
        ("- a", ValueError, r"config .*config.yaml is not a config, expected keys with their values"),
        ("a", ValueError, r"config .*config.yaml is not a config, expected keys with their values"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, text, error, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(error, match=message):
        check_yaml(tmp_path / "config.yaml")


def test_anchors_addresses_and_the_projects_configs_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: https://a.b/c.yaml\na: &a [1, 2]\nb: [*a, *a]")
    check_yaml(tmp_path / "config.yaml")
    (tmp_path / "empty.yaml").write_text("")
    check_yaml(tmp_path / "empty.yaml")
    check_yaml(config_file("maskx_R_50_FPN_1x.yaml"))


@pytest.mark.parametrize("text", ["a: !!python/object:os.system {}", "? [a, b]\n: 1", "a: !x 1"])
def test_what_is_no_plain_value_is_named(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config .*config.yaml: .*line 1, column"):
        read_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("a: {b: [1, 2.5, x]}")
    assert read_yaml(tmp_path / "config.yaml") == {"a": {"b": [1, 2.5, "x"]}}
    (tmp_path / "config.yaml").write_text("")
    assert read_yaml(tmp_path / "config.yaml") == {}
