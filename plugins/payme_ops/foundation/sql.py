"""SQL that a reviewer should read lives in include/sql; this loads it."""

from functools import cache
from pathlib import Path

from psycopg import sql

SQL_DIR = Path(__file__).resolve().parents[3] / "include" / "sql"


@cache
def load(name: str) -> sql.SQL:
    """The text of `include/sql/<name>`, placeholders in psycopg's style."""
    return sql.SQL((SQL_DIR / name).read_text(encoding="utf-8"))
