"""Completion for the user's shell: bash also completes files and the names of profiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from cyclopts import App

from edgeprune.core.errors import UserError
from edgeprune.profiles.profile import profile_names


def install(app: App) -> Path:
    """Writes the completion script, has the shell's start-up file read it, returns its path.

    Raises UserError where the shell isn't known or the files can't be written.
    """
    from cyclopts.completion.detect import ShellDetectionError, detect_shell

    try:
        shell = detect_shell()
        path = app.install_completion(shell=shell)
        if shell == "bash":
            path.write_text(bash_script(app), encoding="utf-8")
    except ShellDetectionError as error:
        raise UserError(
            "--install-completion knows bash, zsh, fish and PowerShell: run it from one of them"
        ) from error
    except OSError as error:
        raise UserError(f"--install-completion: {error.filename}: {error.strerror}") from error
    return path


def bash_script(app: App) -> str:
    """cyclopts' script, which completes nothing where it has no list: files then, and profiles."""
    shell: Literal["bash"] = "bash"
    script = app.generate_completion(prog_name="edgeprune", shell=shell)
    names = " ".join(profile_names())
    listed = rf'\1)\2COMPREPLY=( $(compgen -W "{names}" -- "${{cur}}") )'
    script = re.sub(r"(--profile|-p)\)(\s+)COMPREPLY=\(\)", listed, script)
    return script.replace("complete -F", "complete -o bashdefault -o default -F")
