"""The registry: literals read, nothing run; mistakes named with file and entry; other packages' parts."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench import registry
from bench.cli.main import main
from bench.errors import InputError
from bench.experiments.expand import load_experiment
from bench.experiments.identity import identity_document
from bench.machine.foreign import Grant, granted

GOOD = {"name": "a", "factory": "A", "help": "a part"}


def declare(folder: Path, *entries, before: str = "") -> list[registry.Entry]:
    """Return the quantizers that a module with these entries declares."""
    path = folder / "part.py"
    path.write_text(f"{before}\nENTRIES = {list(entries)!r}\n", encoding="utf-8")
    return registry.read_entries("quantizers", path, "part")


class TestReading:
    def test_nothing_is_run(self, tmp_path):
        (entry,) = declare(tmp_path, GOOD, before="raise SystemExit")
        assert (entry.name, entry.factory, entry.revision) == ("a", "A", 1)

    def test_an_entry_may_be_like_one_above_it_in_all_but_its_factory(self, tmp_path):
        first = GOOD | {"w_bits": [1, 2], "title": "T"}
        made = declare(tmp_path, first, {"name": "b", "like": "a", "help": "another", "w_bits": [1]})
        assert [entry.factory for entry in made] == ["A", "b"] and made[1].title == "T"
        assert made[1].help == "another" and made[1].facts == {"w_bits": [1]}

    def test_what_is_no_literal_is_refused(self, tmp_path):
        path = tmp_path / "part.py"
        path.write_text("ENTRIES = [__import__('os').getcwd()]\n", encoding="utf-8")
        with pytest.raises(InputError, match=r"part\.py: ENTRIES: is not a literal"):
            registry.read_entries("quantizers", path, "part")

    def test_shared_options_stand_in_the_module_or_in_the_group(self, tmp_path):
        path = tmp_path / "part.py"
        path.write_text(
            'OPTIONS = {"mine": {"type": "int", "help": "a number"}}\n'
            'FACTORS = [{"name": "a", "factory": "a", "help": "a factor",\n'
            '            "options": {"mine": "shared", "until": "shared"}}]\n',
            encoding="utf-8",
        )
        (entry,) = registry.read_entries("factors", path, "part")
        assert entry.options["mine"] == {"type": "int", "help": "a number"}
        assert entry.options["until"]["help"] == "fraction of all steps"

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"help": ""}, "a: help: "),
            ({"factory": None}, "a: factory: "),
            ({"revision": 0}, "a: revision: "),
            ({"w_bit": [1]}, "a: w_bit: no entry of quantizers has this key. Did you mean 'w_bits'?"),
            ({"options": {"x": {"type": "int"}}}, "a: options.x.help: missing"),
            ({"options": {"x": {"type": "number", "help": "x"}}}, "a: options.x.type: "),
            (
                {"options": {"x": {"type": "int", "help": "x", "bellow": 3}}},
                "a: options.x.bellow: a declaration has no such key. Did you mean 'below'?",
            ),
            (
                {"options": {"x": {"type": "bool", "help": "x", "only_with": {"y": [1]}}}},
                "a: options.x.only_with: there is no option y",
            ),
            ({"options": {"x": {"type": "str", "help": "x", "min": 1}}}, "a: options.x: bounds have"),
            (
                {"options": {"x": {"type": "str", "help": "x", "cost": {"joint": 1.0}}}},
                "only with type 'teacher'",
            ),
            ({"options": {"kind": {"type": "str", "help": "x"}}}, "a: options.kind: an option cannot have"),
            ({"options": {"x": "shared"}}, "options.x: no shared option"),
            ({"options": ["x"]}, "options.x: no shared option"),
            ({"options": [["x"]]}, "options.['x']: no shared option"),
            ({"like": "b"}, "a: like: no entry above is called 'b'"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_named_with_file_and_entry(self, tmp_path, change, words):
        with pytest.raises(InputError) as error:
            declare(tmp_path, GOOD | change)
        assert str(tmp_path / "part.py") in str(error.value) and words in str(error.value)

    def test_unknown_names_are_answered_with_the_nearest(self):
        with pytest.raises(
            InputError, match=r"here: no quantizer is called 'dorfea'\. Did you mean 'dorefa'\?"
        ):
            registry.get("quantizers", "dorfea", "here")


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_factory_is_there(group):
    for name in registry.entries(group):
        made = registry.load(group, name)
        assert callable(made) or group == "datasets"


# --- a package outside ---

MODULE = '''
"""A factor of another package."""
import pathlib
pathlib.Path(__file__).with_name("imported").touch()

FACTORS = [{"name": "root", "factory": "root_factor", "help": "sqrt(1 - u)",
            "options": {"until": "shared", "until_epochs": "shared", "keep": "shared"}}]


def root_factor(spec, step, total_steps, steps_per_epoch):
    return max(0.0, 1.0 - step / total_steps / spec["until"]) ** 0.5
'''

EXPERIMENT = """
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.125
epochs = 2
quantizer = "dorefa"
bits = "1/1"
[[arms]]
name = "root"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "root", until = 0.5 } }
"""


def install(folder: Path, version: str = "1.5", module: str = MODULE, name: str = "outside_of_tests") -> Path:
    """Write an installed package with a factor into ``folder``; return the folder of its module."""
    package = folder / name
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text("")
    (package / "factors.py").write_text(module, encoding="utf-8")
    for old in folder.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    info = folder / f"outside_of_tests-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: outside-of-tests\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[bench.factors]\nmore = {name}.factors\n")
    return package


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages; the registry is read anew, before and after."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registry.entries.cache_clear()
    yield folder
    registry.entries.cache_clear()
    for name in [name for name in sys.modules if name.startswith("outside_of_tests")]:
        del sys.modules[name]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "outside.toml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    return path


class TestPackages:
    def test_a_part_is_listed_with_its_package_and_nothing_is_imported(self, site, capsys):
        package = install(site)
        assert main(["list", "schedules"]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("root ")]
        assert "outside-of-tests 1.5" in line and "sqrt(1 - u)" in line
        assert not (package / "imported").exists()

    def test_it_is_refused_until_the_command_line_allows_it(self, site, file, capsys):
        package = install(site)
        assert main(["show", str(file)]) == 2
        message = capsys.readouterr().err
        assert "code of outside-of-tests 1.5" in message and "--allow-code outside_of_tests" in message
        assert "strategy.factor: factor 'root'" in message and not (package / "imported").exists()
        assert main(["show", str(file), "--allow-code", "outside_of_tests"]) == 0
        assert (package / "imported").exists()

    def test_its_version_is_part_of_the_identity_and_of_the_record(self, site, file):
        found = []
        for version in ("1.5", "1.6"):
            install(site, version)
            registry.entries.cache_clear()
            with granted(Grant(("outside_of_tests",))):
                (trial,) = load_experiment(file).trials
            assert trial.config.dump()["strategy"]["factor"]["package"] == f"outside-of-tests {version}"
            assert identity_document(trial.config)["strategy"]["factor"]["package"].endswith(version)
            found.append(trial)
        assert found[0].id != found[1].id
        with pytest.raises(ValueError, match="another version is another trial"):
            type(found[0].config).model_validate(found[0].config.dump())

    @pytest.mark.slow
    def test_it_trains_in_a_process_of_its_own(self, site, file, tmp_path):
        install(site)
        command = [sys.executable, "-m", "bench", "run", str(file), "--results", str(tmp_path / "runs")]
        command += [
            "--no-ray",
            "--set",
            "epochs=1",
            "--set",
            "train_size=128",
            "--allow-code",
            "outside_of_tests",
        ]
        command += ["--set", "batch_size=64", "--seeds", "1"]
        environment = {
            "PYTHONPATH": f"{site}:{Path(__file__).parents[1]}",
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
        }
        done = subprocess.run(
            command, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (record,) = (tmp_path / "runs" / "trials").glob("*/trial.json")
        assert '"package": "outside-of-tests 1.5"' in record.read_text()
        # the report needs no package and no leave: records hold all that it shows
        environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        command = [sys.executable, "-m", "bench", "report", "--results", str(tmp_path / "runs")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "root" in (tmp_path / "runs" / "report" / "outside" / "runs.csv").read_text()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"module": MODULE.replace('"root"', '"cosine"')}, r"'cosine' is declared in "
                                                               r"bench\.schedules\.factors"),
            ({"module": MODULE.replace("help", "halp")}, r"factors\.py: FACTORS: root: "),
            ({"module": "X = 1\n"}, "has no entries"),
        ],
    )  # fmt: skip
    def test_a_mistake_of_a_package_is_one_message(self, site, capsys, change, words):
        install(site, **change)
        assert main(["list", "schedules"]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        with pytest.raises(InputError, match=words):
            registry.entries("factors")

    def test_an_entry_point_without_its_module_is_named(self, site):
        package = install(site)
        (package / "factors.py").unlink()
        with pytest.raises(
            InputError, match=r"entry point 'more' of outside-of-tests 1\.5 .*there is no module"
        ):
            registry.entries("factors")


def test_listing_takes_no_torch():
    code = textwrap.dedent("""
        import sys
        from bench.cli.show import list_text
        list_text("quantizers"); list_text("schedules")
        assert "torch" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
