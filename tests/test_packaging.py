"""Every folder with an __init__.py is listed in pyproject: editable installs hide omissions."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder(package):
    """Return the folder of a package, by the longest prefix that package-dir maps."""
    mapping = SETUPTOOLS["package-dir"]
    root = max((p for p in mapping if f"{package}.".startswith(f"{p}.")), key=len)
    return "/".join([mapping[root], *package[len(root) :].split(".")[1:]])


def test_every_package_folder_is_listed():
    on_disk = {
        init.parent.relative_to(ROOT).as_posix()
        for top in SETUPTOOLS["package-dir"].values()
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert on_disk == {folder(package) for package in SETUPTOOLS["packages"]}


def test_every_module_lies_in_a_package():
    for top in SETUPTOOLS["package-dir"].values():
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path} is in no package"


def test_every_data_file_is_shipped():
    """What is no Python under a package folder must match a package-data pattern."""
    packages = {package: ROOT / folder(package) for package in SETUPTOOLS["packages"]}
    shipped = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in packages[package].glob(pattern)
    }
    on_disk = {
        path
        for top in SETUPTOOLS["package-dir"].values()
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert on_disk <= shipped, f"not shipped: {sorted(on_disk - shipped)}"
