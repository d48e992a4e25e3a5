-- Every object whose definition a restore must bring back: kind, name, SHA-256 of its text form. With an empty
-- search_path, so that names in the text have their schemas. About 75 ms per 100 tables of ten columns.
--
-- Expressions are compared without casts, parentheses and blanks: a server writes `x IN ('a', 'b')` of a varchar in
-- one way, and after a dump and a restore in another with other casts, though nothing has changed.
-- Left out: members of extensions (CREATE EXTENSION brings them), what PostgreSQL makes by itself for partitions, and
-- what pg_dump leaves out: indexes that are not valid, what is temporary, and what was added to pg_catalog.
-- Whoever changes a text form here counts DEFINITIONS_FORM in backup/truth.py on, or every older backup would look refuted.
-- A name is NULL when the object was dropped after the snapshot: functions of PostgreSQL look at what is now.
WITH member AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
),
own AS (
    SELECT n.oid, quote_ident(n.nspname) AS name
    FROM pg_namespace AS n
    WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM member AS m WHERE m.classid = 'pg_namespace'::regclass AND m.objid = n.oid)
),
relation AS (
    SELECT c.*, own.name || '.' || quote_ident(c.relname) AS name
    FROM pg_class AS c
    JOIN own ON own.oid = c.relnamespace
    WHERE c.relpersistence <> 't'
      AND NOT EXISTS (SELECT FROM member AS m WHERE m.classid = 'pg_class'::regclass AND m.objid = c.oid)
),
object (kind, name, exact, expression) AS (
    SELECT CASE r.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialised view' WHEN 'c' THEN 'type' ELSE 'table' END,
           r.name,
           concat_ws(' | ', r.relkind, r.relpersistence, r.relrowsecurity, r.relforcerowsecurity, r.relreplident,
                     -- Sorted: pg_dump writes check_option apart from the others.
                     (SELECT string_agg(o, ',' ORDER BY o COLLATE "C") FROM unnest(r.reloptions) AS o),
                     pg_get_partkeydef(r.oid),
                     pg_get_expr(r.relpartbound, r.oid), nullif(r.reloftype, 0)::regtype,
                     (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno)
                      FROM pg_inherits AS i WHERE i.inhrelid = r.oid)),
           CASE WHEN r.relkind IN ('v', 'm') THEN pg_get_viewdef(r.oid) END
    FROM relation AS r
    WHERE r.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
    UNION ALL
    SELECT 'column', r.name || '.' || quote_ident(a.attname),
           concat_ws(' | ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                     a.attstorage, a.attcollation::regcollation),
           pg_get_expr(d.adbin, d.adrelid)
    FROM relation AS r
    JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE r.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
    UNION ALL
    SELECT 'sequence', r.name,
           concat_ws(' | ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle,
                     r.relpersistence), NULL
    FROM relation AS r
    JOIN pg_sequence AS s ON s.seqrelid = r.oid
    UNION ALL
    SELECT 'index', i.name, concat_ws(' | ', x.indisclustered, x.indisreplident, x.indisvalid), pg_get_indexdef(i.oid)
    FROM relation AS i
    JOIN pg_index AS x ON x.indexrelid = i.oid
    WHERE x.indisvalid OR i.relkind = 'I'
    UNION ALL
    SELECT 'constraint', coalesce(r.name, own.name || '.' || quote_ident(t.typname)) || '.' || quote_ident(c.conname),
           c.contype::text, pg_get_constraintdef(c.oid)
    FROM pg_constraint AS c
    LEFT JOIN relation AS r ON r.oid = c.conrelid
    LEFT JOIN pg_type AS t ON t.oid = c.contypid
    LEFT JOIN own ON own.oid = t.typnamespace
    WHERE coalesce(r.name, own.name) IS NOT NULL
      AND c.contype IN ('c', 'f', 'p', 'u', 'x') AND c.conparentid = 0
    UNION ALL
    SELECT 'trigger', r.name || '.' || quote_ident(t.tgname), t.tgenabled::text, pg_get_triggerdef(t.oid)
    FROM pg_trigger AS t
    JOIN relation AS r ON r.oid = t.tgrelid
    WHERE NOT t.tgisinternal AND t.tgparentid = 0
    UNION ALL
    SELECT 'rule', r.name || '.' || quote_ident(w.rulename), w.ev_enabled::text, pg_get_ruledef(w.oid)
    FROM pg_rewrite AS w
    JOIN relation AS r ON r.oid = w.ev_class
    WHERE w.rulename <> '_RETURN'
    UNION ALL
    SELECT 'policy', r.name || '.' || quote_ident(p.polname),
           concat_ws(' | ', p.polcmd, p.polpermissive,
                     (SELECT string_agg(CASE role WHEN 0 THEN 'public' ELSE pg_get_userbyid(role) END, ','
                                        ORDER BY CASE role WHEN 0 THEN 'public' ELSE pg_get_userbyid(role) END)
                      FROM unnest(p.polroles) AS role)),
           concat_ws(' | ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    FROM pg_policy AS p
    JOIN relation AS r ON r.oid = p.polrelid
    UNION ALL
    SELECT 'function', own.name || '.' || quote_ident(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           concat_ws(' | ', p.prokind, l.lanname, p.provolatile, p.proisstrict, p.prosecdef, p.proleakproof, p.proparallel,
                     array_to_string(p.proconfig, ','), pg_get_function_result(p.oid), p.prosrc, p.probin,
                     (SELECT concat_ws(' ', g.aggtransfn::regproc, g.aggfinalfn::regproc, g.aggtranstype::regtype,
                                       quote_nullable(g.agginitval))
                      FROM pg_aggregate AS g WHERE g.aggfnoid = p.oid)),
           concat_ws(' | ', pg_get_function_arguments(p.oid), pg_get_function_sqlbody(p.oid))
    FROM pg_proc AS p
    JOIN own ON own.oid = p.pronamespace
    JOIN pg_language AS l ON l.oid = p.prolang
    WHERE NOT EXISTS (SELECT FROM member AS m WHERE m.classid = 'pg_proc'::regclass AND m.objid = p.oid)
    UNION ALL
    SELECT CASE t.typtype WHEN 'd' THEN 'domain' ELSE 'type' END, own.name || '.' || quote_ident(t.typname),
           concat_ws(' | ', t.typtype, CASE WHEN t.typtype = 'd' THEN format_type(t.typbasetype, t.typtypmod) END,
                     t.typnotnull, t.typcollation::regcollation,
                     (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder)
                      FROM pg_enum AS e WHERE e.enumtypid = t.oid),
                     (SELECT g.rngsubtype::regtype::text FROM pg_range AS g WHERE g.rngtypid = t.oid)),
           t.typdefault
    FROM pg_type AS t
    JOIN own ON own.oid = t.typnamespace
    WHERE t.typtype IN ('b', 'd', 'e', 'r')
      -- Not the array type that every type has.
      AND NOT EXISTS (SELECT FROM pg_type AS of WHERE of.typarray = t.oid)
      AND NOT EXISTS (SELECT FROM member AS m WHERE m.classid = 'pg_type'::regclass AND m.objid = t.oid)
    UNION ALL
    SELECT 'statistics', own.name || '.' || quote_ident(s.stxname), NULL, pg_get_statisticsobjdef(s.oid)
    FROM pg_statistic_ext AS s
    JOIN own ON own.oid = s.stxnamespace
    UNION ALL
    SELECT 'event trigger', quote_ident(e.evtname),
           concat_ws(' | ', e.evtevent, e.evtenabled, e.evtfoid::regprocedure, array_to_string(e.evttags, ',')), NULL
    FROM pg_event_trigger AS e
    WHERE NOT EXISTS (SELECT FROM member AS m WHERE m.classid = 'pg_event_trigger'::regclass AND m.objid = e.oid)
    UNION ALL
    SELECT 'publication', quote_ident(p.pubname),
           concat_ws(' | ', p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
                     (SELECT string_agg(t.prrelid::regclass::text, ',' ORDER BY t.prrelid::regclass::text COLLATE "C")
                      FROM pg_publication_rel AS t WHERE t.prpubid = p.oid)), NULL
    FROM pg_publication AS p
    UNION ALL
    SELECT 'default privileges',
           concat_ws(' ', pg_get_userbyid(a.defaclrole), own.name, a.defaclobjtype),
           (SELECT string_agg(x::text, ',' ORDER BY x::text COLLATE "C") FROM unnest(a.defaclacl) AS x), NULL
    FROM pg_default_acl AS a
    LEFT JOIN own ON own.oid = a.defaclnamespace
    UNION ALL
    SELECT 'comment', i.type || ' ' || i.identity, d.description, NULL
    FROM pg_description AS d
    CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) AS i
    WHERE d.objoid >= 16384
      AND coalesce(i.schema, '') !~ '^pg_' AND coalesce(i.identity, '') !~ ' on pg_temp(_\d+)?\.'
      AND NOT EXISTS (SELECT FROM member AS m WHERE m.classid = d.classoid AND m.objid = d.objoid)
    UNION ALL
    -- Of these their presence is compared.
    SELECT i.type, i.identity, NULL, NULL
    FROM (
        SELECT 'pg_cast'::regclass AS class, oid FROM pg_cast
        UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator
        UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass
        UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily
        UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation
        UNION ALL SELECT 'pg_conversion'::regclass, oid FROM pg_conversion
        UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config
        UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict
        UNION ALL SELECT 'pg_ts_parser'::regclass, oid FROM pg_ts_parser
        UNION ALL SELECT 'pg_ts_template'::regclass, oid FROM pg_ts_template
        UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language
        UNION ALL SELECT 'pg_am'::regclass, oid FROM pg_am
        UNION ALL SELECT 'pg_transform'::regclass, oid FROM pg_transform
        UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper
        UNION ALL SELECT 'pg_foreign_server'::regclass, oid FROM pg_foreign_server
    ) AS o
    CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) AS i
    WHERE o.oid >= 16384
      AND coalesce(i.schema, '') !~ '^pg_'
      AND NOT EXISTS (SELECT FROM member AS m WHERE m.classid = o.class AND m.objid = o.oid)
)
SELECT kind, name,
       encode(sha256(convert_to(
           coalesce(exact, '') || ' # ' || translate(
               regexp_replace(
                   coalesce(expression, ''),
                   '::("?[^ "''():,]+"?\.)?("[^"]+"|character varying|bit varying|double precision'
                   || '|(timestamp|time)(\(\d+\))? with(out)? time zone|[a-z0-9_]+)(\(\d+(,\s*\d+)?\))?(\[\])*',
                   '', 'g'),
               '() ' || chr(10), ''),
           getdatabaseencoding())), 'hex') AS sha256
FROM object
ORDER BY kind COLLATE "C", name COLLATE "C"
