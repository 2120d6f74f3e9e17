"""What is there to find the way: examples that parse, suggestions, completion."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from edgeprune.cli.app import app, main
from edgeprune.cli.completion import bash_script
from edgeprune.cli.guidance import _EXAMPLES, examples, mistyped
from edgeprune.profiles.profile import profile_names

COMMANDS = [line for lines in _EXAMPLES.values() for line in lines if "COMMAND" not in line]


@pytest.mark.parametrize("line", COMMANDS)
def test_examples_are_commands_that_parse_and_profiles_that_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    app.parse_args(words, exit_on_error=False, print_error=False)
    for flag, value in itertools.pairwise(words):
        assert flag not in ("-p", "--profile") or value in (*profile_names(), "host")


@pytest.mark.parametrize("command", [name for name in _EXAMPLES if name])
def test_help_shows_the_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert _EXAMPLES[command][0] in capsys.readouterr().out.replace("\n", " ")
    assert examples(command).startswith("Examples:\n  edgeprune ")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("pruen", "prune"), ("inspct", "inspect"), ("Sweep", "sweep"), ("profile", "profiles")],
)
def test_a_mistyped_command_gets_a_suggestion(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word, "net.pt"]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith(f"edgeprune: there is no command or file {word}: did you mean {meant}?")


def test_a_mistyped_option_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["net.pt", "--latncy-ms", "3"]) == 2
    assert "Did you mean --latency-ms?" in capsys.readouterr().err


def test_a_model_is_no_mistyped_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pruned").mkdir()
    for words in (["pruned"], ["prune.pt"], ["sweeps:net"], ["--pruen"], [], ["prune"], ["model"]):
        assert mistyped(words, app) is None


def test_completion_is_installed_for_the_users_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BASH_VERSION", "5")
    for name in ("ZSH_VERSION", "XDG_DATA_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--install-completion"]) == 0
    [told] = capsys.readouterr().out.splitlines()
    script = Path(told.split(": start")[0])
    assert script.is_relative_to(tmp_path) and script.read_text() == bash_script(app)
    assert str(script) in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("edgeprune pr", {"prune", "profiles"}),
        ("edgeprune net.pt --lat", {"--latency-ms"}),
        ("edgeprune net.pt --profile raspberry-pi-5", {"raspberry-pi-5"}),
        ("edgeprune diff --js", {"--json"}),
    ],
)
def test_bash_completes_commands_options_and_profiles(
    line: str, wanted: set[str], tmp_path: Path
) -> None:
    words = line.split()
    given = " ".join(map(shlex.quote, words))
    script = (
        f"{bash_script(app)}\nCOMP_WORDS=({given}); COMP_CWORD={len(words) - 1}\n"
        '_edgeprune; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    made = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert set(made.stdout.split()) == wanted


def test_bash_falls_back_to_files() -> None:
    assert "complete -o bashdefault -o default -F _edgeprune edgeprune" in bash_script(app)


def test_an_unknown_shell_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ZSH_VERSION", "BASH_VERSION", "FISH_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    monkeypatch.setenv("PATH", os.devnull)  # no ps that tells the parent's name
    assert main(["--install-completion"]) == 2
    [told] = capsys.readouterr().err.splitlines()
    assert "knows bash, zsh, fish and PowerShell" in told
