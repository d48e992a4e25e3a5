-- A view in the table's place that has the column under both names, so that the versions before and after the rename run
-- side by side. Simple enough to be updated; with the rights of who asks; defaults and identity are the table's own.
-- `columns` are all of the table in its order. In one transaction under ACCESS EXCLUSIVE, for milliseconds.
ALTER TABLE {relation} RENAME TO {base};
CREATE VIEW {relation} WITH (security_invoker = true) AS
    SELECT {columns}, {plaintext} AS {ciphertext} FROM {base_relation};
