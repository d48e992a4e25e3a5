-- How many rows the planner expects in a range of keys; nothing is read.
EXPLAIN (FORMAT JSON) SELECT FROM {relation} WHERE {key} > %(low)s AND {key} <= %(high)s
