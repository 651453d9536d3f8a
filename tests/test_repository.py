"""The files around the package agree with it and with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("The tests are not in the repository.", allow_module_level=True)

BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = BUILD["project"]
TEXTS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", ".git", ".github"} & set(path.parts))


def workflow(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    return re.search(rf"(?m)^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"))[1]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a text."""
    headings = re.findall(r"(?m)^#+ (.+)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(text: Path):
    content = re.sub(r"(?s)```.*?```", "", text.read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", content)
    local = [link.partition("#") for link in links if not re.match(r"[a-z]+:|\{\{", link)]
    missing = [path for path, _, _ in local if path and not (text.parent / path).exists()]
    lost = [
        f"{path}#{anchor}"
        for path, _, anchor in local
        if anchor and path not in missing and anchor not in anchors((text.parent / path) if path else text)
    ]
    assert not missing
    assert not lost


def test_the_readme_has_its_picture_and_links_on_pypi_too():
    """What the build makes of it; `.ci/package` looks at what was built."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in BUILD["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    repository = PROJECT["urls"]["Repository"]
    picture = (
        repository.replace("https://github.com", "https://raw.githubusercontent.com") + "/main/docs/assets/gains.svg"
    )
    assert re.findall(r"!\[[^]]*\]\(([^)]+)\)", text) == [picture]
    assert all(link.startswith(("https://", "#")) for link in links)
    own = [link.removeprefix(f"{repository}/blob/main/") for link in links if link.startswith(repository)]
    assert all((ROOT / path.partition("#")[0]).exists() for path in own)


def test_continuous_integration_tests_every_python_that_the_package_claims():
    claimed = {
        line.removeprefix("Programming Language :: Python :: ")
        for line in PROJECT["classifiers"]
        if line.startswith("Programming Language :: Python :: 3.")
    }
    tested = workflow("tests.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert set(tested["python"]) == claimed
    assert min(claimed, key=lambda version: int(version.partition(".")[2])) in PROJECT["requires-python"]
    assert {entry["versions"] for entry in tested["include"]} == {"oldest", "tested"}


def test_pre_commit_runs_the_same_ruff_as_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    revisions = {Path(repo["repo"]).name: repo.get("rev") for repo in hooks}
    assert revisions["ruff-pre-commit"] == f"v{pinned('ruff')}"


@pytest.mark.parametrize("name", ["tests.yml", "docs.yml", "release.yml"])
def test_workflows_hold_no_more_rights_than_they_need(name: str):
    """A workflow of a pull request must not be able to write to the repository."""
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    rights = {job: values.get("permissions") for job, values in found["jobs"].items() if values.get("permissions")}
    assert rights == ({"publish": {"id-token": "write"}} if name == "release.yml" else {})


def test_the_space_asks_for_the_gradio_that_is_tested():
    _, header, _ = (ROOT / "space" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    asked = yaml.safe_load(header)
    assert asked["sdk_version"] == pinned("gradio")
    assert (ROOT / "space" / asked["app_file"]).is_file()
    assert f"Programming Language :: Python :: {asked['python_version']}" in PROJECT["classifiers"]
    assert len(asked["short_description"]) <= 60  # what the Hub takes


def test_issue_forms_have_what_github_demands():
    for form in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        values = yaml.safe_load(form.read_text(encoding="utf-8"))
        if form.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= values.keys()
        names = [entry["id"] for entry in values["body"]]
        assert len(names) == len(set(names))
        assert all(entry["attributes"]["label"] for entry in values["body"])


def test_the_changelog_has_a_place_for_what_comes_next_and_a_link_for_each_version():
    content = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"(?m)^## \[([^\]]+)\]", content)
    assert versions[0] == "Unreleased"
    assert set(versions) == set(re.findall(r"(?m)^\[([^\]]+)\]: https://", content))


def test_commands_in_the_contributing_guide_name_files_that_exist():
    commands = re.findall(r"(?m)^\| .+? \| `(.+)` \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    files = [
        word
        for command in commands
        for word in re.findall(r"(?:tests|benchmarks|\.ci)/[\w./]+|constraints\.txt", command)
    ]
    assert len(files) > 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_citation_names_people_and_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    init = (ROOT / "hf_prune" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{citation["version"]}"' in init
    for reference in citation["references"]:
        assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])
        assert reference.get("doi") or reference.get("url")
