"""`python -m payme_ops`: the desk on a shell, for the day Airflow is down."""

from payme_ops.cli import main

main()
