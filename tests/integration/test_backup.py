"""A backup from end to end: on each PostgreSQL version, restored and compared."""

from tests.support.installation import Installation


def test_back_up(each_installation: Installation) -> None:
    each_installation.back_up()
    each_installation.require_recovery(backups=1)


def test_restore(each_installation: Installation) -> None:
    done = each_installation.back_up()
    ended = each_installation.cli("backup", "restore", done.key, "--into", "restored_once")
    assert ended.code == 0, ended
