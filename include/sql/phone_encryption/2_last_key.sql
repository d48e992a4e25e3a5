-- The highest key; one look into the primary key.
SELECT coalesce(max({key}), 0)::bigint FROM {source}
