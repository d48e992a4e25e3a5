-- One of each kind of object that pg_dump has to bring back, with the names that trip people up.
CREATE SCHEMA "Mixed Case";
CREATE TYPE "Mixed Case".mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE TYPE pair AS (a int, b "Mixed Case".mood);
CREATE DOMAIN positive AS numeric CHECK (VALUE > 0);
CREATE TYPE float_range AS RANGE (subtype = float8);
CREATE COLLATION german (provider = libc, locale = 'C');
CREATE SEQUENCE down INCREMENT -1 MINVALUE -100 MAXVALUE -1 START -1;
CREATE SEQUENCE around MAXVALUE 3 CYCLE;
CREATE TABLE "Mixed Case"."100% ""odd""" (
    "select" int PRIMARY KEY, "a.b" pair, many "Mixed Case".mood[], r float_range, p positive DEFAULT 1.50,
    gone int, t text COLLATE german, x json, twice int GENERATED ALWAYS AS ("select" * 2) STORED
);
ALTER TABLE "Mixed Case"."100% ""odd""" DROP COLUMN gone;
INSERT INTO "Mixed Case"."100% ""odd""" ("select", "a.b", many, r, t, x)
    SELECT i, ROW(i, 'it''s ok'::"Mixed Case".mood)::pair, '{sad,happy}', float_range(-i, i), E'line\nbreak\ttab\\ ' || i, '{"a":  1}'
    FROM generate_series(1, 200) AS i;
CREATE TABLE parent (id int, at date) PARTITION BY LIST (id);
CREATE TABLE child_1 PARTITION OF parent FOR VALUES IN (1) PARTITION BY RANGE (at);
CREATE TABLE grandchild PARTITION OF child_1 FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE rest PARTITION OF parent DEFAULT;
INSERT INTO parent VALUES (1, '2026-01-28'), (2, NULL), (NULL, NULL);
CREATE TABLE old_style (a int); CREATE TABLE heir (b int) INHERITS (old_style);
INSERT INTO old_style VALUES (1); INSERT INTO heir VALUES (2, 3);
CREATE TABLE typed OF pair; INSERT INTO typed VALUES (1, 'sad');
CREATE TABLE empty_one (); INSERT INTO empty_one DEFAULT VALUES;
CREATE TABLE wide (v text); ALTER TABLE wide ALTER v SET STORAGE EXTERNAL;
INSERT INTO wide SELECT repeat(md5(i::text), 3000) FROM generate_series(1, 20) AS i;
CREATE UNLOGGED TABLE forgetful (a int); INSERT INTO forgetful VALUES (1);
CREATE TABLE booked (during tsrange, EXCLUDE USING gist (during WITH &&));
CREATE VIEW v AS SELECT * FROM old_style; CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM wide;
CREATE MATERIALIZED VIEW not_yet AS SELECT 1 AS one WITH NO DATA;
CREATE FUNCTION f("In" int, OUT "Out" int) LANGUAGE sql AS 'SELECT $1';
CREATE PROCEDURE p() LANGUAGE sql AS '';
CREATE AGGREGATE my_sum(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE OPERATOR === (leftarg = int, rightarg = int, procedure = int4eq);
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER t BEFORE INSERT ON old_style FOR EACH ROW EXECUTE FUNCTION trg();
CREATE RULE r AS ON DELETE TO heir DO INSTEAD NOTHING;
CREATE STATISTICS s ON id, at FROM rest;
CREATE PUBLICATION pub FOR TABLE wide;
CREATE TEXT SEARCH CONFIGURATION swahili (COPY = simple);
ALTER TABLE wide ENABLE ROW LEVEL SECURITY; ALTER TABLE wide FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON wide USING (false);
COMMENT ON TABLE wide IS 'it''s "wide"';
GRANT SELECT (a) ON old_style TO PUBLIC; GRANT ALL ON SCHEMA "Mixed Case" TO payme_app WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO payme_app;
SELECT nextval('down'), nextval('down'), nextval('around'), lo_from_bytea(0, 'one'), lo_create(0);
