"""`dalang dev logs`: prints, and follows, the log files of parts and pods."""

import sys
import time
from pathlib import Path

from dalang_cli.dev.errors import DevError
from dalang_cli.dev.state import StateDirectory, dev_command

OVERVIEW_LINES = 10
FOLLOW_SECONDS = 0.2


def show_logs(directory: StateDirectory, part: str | None, *, tail: int | None, follow: bool) -> int:
    """Print the logs of one part, or the end of all; returns the exit code.

    Raises:
        DevError: there is no such log, or several begin with that name.
    """
    files = log_files(directory)
    if not files:
        raise DevError(f"There are no logs in {directory.logs} yet. Start with: {dev_command('up', directory)}")
    if part is not None:
        files = {part_name: paths for part_name, paths in files.items() if part_name in matching(part, list(files))}
    elif tail is None:
        tail = OVERVIEW_LINES
    paths = [(name, path) for name, several in sorted(files.items()) for path in several]
    for name, path in paths:
        if len(paths) > 1:
            print(f"==> {name}: {path} <==")
        sys.stdout.write(last_lines(path.read_text(errors="replace"), tail))
    sys.stdout.flush()
    if follow:
        _follow([path for _, path in paths])
    return 0


def log_files(directory: StateDirectory) -> dict[str, list[Path]]:
    """Return the log files by part; a pod has one per container."""
    files = {path.stem: [path] for path in directory.logs.glob("*.log")}
    for folder in sorted((directory.logs / "pods").glob("*")):
        files[folder.name] = sorted(folder.glob("*.log"))
    return files


def matching(part: str, names: list[str]) -> set[str]:
    """Return the one name meant by a name or its beginning.

    Raises:
        DevError: none or several are meant.
    """
    found = {part} if part in names else {name for name in names if name.startswith(part)}
    if len(found) == 1:
        return found
    several = ", ".join(sorted(found or names))
    raise DevError(
        f"{part!r} is {'the beginning of several names' if found else 'not a part'}. Choose one of: {several}"
    )


def last_lines(text: str, count: int | None) -> str:
    """Return the last `count` lines of a text, all when `count` is None."""
    if count is None:
        return text
    return "".join(text.splitlines(keepends=True)[-count:]) if count > 0 else ""


def _follow(paths: list[Path]) -> None:
    offsets = {path: path.stat().st_size for path in paths}
    while True:
        for path, offset in offsets.items():
            size = path.stat().st_size if path.exists() else 0
            if size < offset:
                offset = 0  # set aside and begun anew
            if size > offset:
                with path.open("rb") as file:
                    file.seek(offset)
                    sys.stdout.write(file.read(size - offset).decode(errors="replace"))
                    sys.stdout.flush()
            offsets[path] = size
        time.sleep(FOLLOW_SECONDS)
