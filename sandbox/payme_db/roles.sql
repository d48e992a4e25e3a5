-- Roles of the PayMe database. Passwords are set by generate.py. Of those that only own things nobody logs in.
-- payme_db_read and payme_db_restore are made by include/sql/grants/, the same files as in production.
CREATE ROLE payme_owner LOGIN;        -- owns the database and its tables; migrations connect as it
CREATE ROLE payme_app LOGIN;          -- the PayMe API
CREATE ROLE payme_ledger NOLOGIN;     -- owns the ledger: the app may add entries, never change them
CREATE ROLE payme_reporting NOLOGIN;  -- owns the materialised view
