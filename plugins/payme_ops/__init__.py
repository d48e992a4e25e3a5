"""payme-ops: PayMe's operations desk. Domains and foundation never import airflow; orchestration does."""

__version__ = "0.1.0"
