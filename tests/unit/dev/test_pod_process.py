"""The files and the environment that a pod's processes find."""

from pathlib import Path

from dalang_cli.dev.pod_process import image_environment, link_parents, synchronize


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_volume_follows_its_source(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    for source in ({"a": b"1", "deep/b": b"2"}, {"a": b"3"}, {}, {"c": b"4"}):
        synchronize(volume, source, owns_all=True)
        assert files(volume) == source


def test_an_unchanged_file_is_not_written_again(tmp_path: Path) -> None:
    synchronize(tmp_path, {"a": b"1"}, owns_all=True)
    before = (tmp_path / "a").stat().st_ino
    synchronize(tmp_path, {"a": b"1"}, owns_all=True)
    assert (tmp_path / "a").stat().st_ino == before


def test_what_a_process_writes_into_an_empty_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_bytes(b"mine")
    synchronize(tmp_path, {}, owns_all=False)
    assert files(tmp_path) == {"scratch": b"mine"}


def test_files_and_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    synchronize(tmp_path / "volume", {"deep/key": b"secret"}, owns_all=True)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "volume", tmp_path / "volume" / "deep" / "key")]
    assert modes == [0o700, 0o600]


def test_the_folder_of_several_mounts_can_be_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        synchronize(tmp_path / name, {"key": name.encode()}, owns_all=True)
    mounts = {
        "/var/run/dalang/secrets/a": tmp_path / "a",
        "/var/run/dalang/secrets/b": tmp_path / "b",
        "/etc/x": tmp_path,
    }
    linked = link_parents(mounts, tmp_path / "root")
    parent = linked["/var/run/dalang/secrets"]
    assert [(parent / name / "key").read_text() for name in ("a", "b")] == ["a", "b"]
    assert linked == {**mounts, "/var/run/dalang/secrets": parent}
    assert link_parents(mounts, tmp_path / "root") == linked


def test_no_key_of_this_machine_reaches_a_container() -> None:
    environment = image_environment(
        {"PATH": "/usr/bin", "HOME": "/me", "OPENAI_API_KEY": "sk", "LC_ALL": "C", "DALANG_X": "y"}
    )
    assert set(environment) == {"PATH", "HOME", "LC_ALL"}
    assert environment["PATH"].endswith(":/usr/bin")
