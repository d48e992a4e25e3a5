-- Made-up data: generate.py gives users, transactions, seed and the constants of its phone and receipt numbers.
-- rnd(row, column) is the only source of chance: a hash that is the same on every server version and in every plan.

CREATE FUNCTION pg_temp.rnd(n bigint, col integer) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT hashint8extended(n, %(seed)s * 1000 + col) & 9223372036854775807 $$;

CREATE FUNCTION pg_temp.pick(words text[], n bigint, col integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT words[1 + mod(pg_temp.rnd(n, col), cardinality(words))] $$;

CREATE FUNCTION pg_temp.digit36(n bigint, place integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT substr('0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ', mod(n / (36::bigint ^ place)::bigint, 36)::integer + 1, 1) $$;

INSERT INTO users (id, public_id, phone_number, full_name, email, kyc, preferences, created_at, updated_at, last_login_at)
SELECT n,
       md5(n || '.user.' || %(seed)s)::uuid,
       %(phone_prefix)s || lpad(mod(n * %(phone_stride)s + %(phone_shift)s, %(phone_block)s)::text, 7, '0'),
       first || ' ' || last,
       CASE WHEN mod(pg_temp.rnd(n, 3), 10) < 7
            THEN lower(first || '.' || replace(last, '''', '') || n) || '@example.com' END,
       (CASE mod(pg_temp.rnd(n, 4), 20) WHEN 0 THEN 'none' WHEN 1 THEN 'rejected' WHEN 2 THEN 'basic' ELSE 'full' END)::kyc_level,
       jsonb_build_object(
           'language', CASE WHEN mod(pg_temp.rnd(n, 5), 3) = 0 THEN 'en' ELSE 'sw' END,
           'notify', jsonb_build_object('sms', mod(pg_temp.rnd(n, 6), 2) = 0, 'email', mod(pg_temp.rnd(n, 7), 4) = 0)),
       joined,
       joined,
       CASE WHEN mod(pg_temp.rnd(n, 8), 10) > 0
            THEN %(end)s::timestamptz - make_interval(secs => mod(pg_temp.rnd(n, 9), 7776000)) END
FROM generate_series(1, %(users)s::bigint) AS n
CROSS JOIN LATERAL (
    SELECT pg_temp.pick('{Achieng,Akinyi,Amina,Atieno,Baraka,Chebet,Chepkoech,Daudi,Esther,Faith,Fatuma,Githinji,Grace,'
                        'Halima,Hassan,Imani,Jabali,Juma,Kamau,Kariuki,Kiprono,Kipchoge,Kioni,Lilian,Makena,Mercy,Moraa,'
                        'Muthoni,Mwangi,Mwende,Naliaka,Nekesa,Njeri,Njoroge,Nyambura,Ochieng,Odhiambo,Omar,Otieno,Pendo,'
                        'Rehema,Samuel,Subira,Wairimu,Wambui,Wanjiku,Zawadi,Zuri}', n, 1) AS first,
           pg_temp.pick('{Abdi,Barasa,Cheruiyot,Chelimo,Gathoni,Gitau,Hussein,Kagwe,Karanja,Kibet,Kilonzo,Kimani,Kimathi,'
                        'Kinyua,Koech,Korir,Langat,Macharia,Maina,Mbugua,Mohamed,Muriuki,Mutai,Mutiso,Mutua,Mwaura,Mwiti,'
                        'Ndungu,Ngugi,Njuguna,Nyaga,Nyong''o,Obura,Okello,Omondi,Onyango,Opiyo,Ouma,Rotich,Wafula,Wanjala,'
                        'Wekesa,Yego}', n, 2) AS last,
           %(start)s::timestamptz - interval '2 years' + n * (interval '2 years' / %(users)s) AS joined
) AS person;

INSERT INTO merchants (id, till_number, name, category, county, contact_phone, commission, settlement_delay, tags, location,
                       risk_score, callback_networks, opening_hours, kyc_documents, logo_digest, active, opened_on)
SELECT n,
       500000 + n * 7,
       pg_temp.pick('{Mama,Baba,Kwa,New,Upendo,Tumaini,Uzima,Highland,Lakeside,Coast}', n, 20) || ' '
           || pg_temp.pick('{Njeri,Otieno,Amina,Juma,Wanjiku,Kiprono,Halima,Zawadi}', n, 21) || ' '
           || pg_temp.pick('{Duka,Kibanda,Chemist,Hotel,Hardware,Butchery,Salon,Cyber,Agrovet,Bakery,Garage,Tailor}', n, 22),
       pg_temp.pick(enum_range(NULL::merchant_category)::text[], n, 23)::merchant_category,
       pg_temp.pick('{Nairobi,Mombasa,Kisumu,Nakuru,Kiambu,Machakos,Kajiado,"Uasin Gishu",Kakamega,Meru,Nyeri,Kilifi}', n, 24),
       CASE WHEN mod(n, 5) > 0 THEN '+25471' || lpad(n::text, 7, '0') END,
       round((mod(pg_temp.rnd(n, 25), 250) + 50) / 10000.0, 4),
       make_interval(days => mod(pg_temp.rnd(n, 26), 4)::integer, hours => mod(pg_temp.rnd(n, 27), 24)::integer),
       CASE WHEN mod(n, 3) = 0 THEN ARRAY['till', 'vat'] WHEN mod(n, 3) = 1 THEN ARRAY['paybill'] ELSE '{}' END,
       point(34 + mod(pg_temp.rnd(n, 28), 70000) / 10000.0, -4 + mod(pg_temp.rnd(n, 29), 80000) / 10000.0),
       mod(pg_temp.rnd(n, 30), 1000000) / 1000000.0::double precision,
       CASE WHEN mod(n, 4) = 0 THEN ARRAY['196.201.214.0/24', '196.201.213.0/24']::cidr[] ELSE '{}' END,
       jsonb_build_object('mon-sat', '08:00-20:00', 'sun', CASE WHEN mod(n, 2) = 0 THEN '10:00-16:00' END),
       json_build_object('kra_pin', 'A' || lpad(n::text, 9, '0') || 'K', 'permit', mod(n, 2) = 0),
       sha256(convert_to('logo' || n, 'UTF8')),
       mod(pg_temp.rnd(n, 31), 20) > 0,
       (%(start)s::timestamptz - make_interval(days => mod(pg_temp.rnd(n, 32), 1500)::integer))::date
FROM generate_series(1, %(merchants)s::bigint) AS n;

-- Some merchants sell far more than others; numbers follow time.
INSERT INTO transactions (id, user_id, merchant_id, kind, status, amount, fee, description, metadata, created_at, completed_at)
OVERRIDING SYSTEM VALUE
SELECT n,
       CASE WHEN kind IN ('payment', 'refund') THEN mod(pg_temp.rnd(n, 42), %(users)s) + 1 END,
       floor(%(merchants)s * (mod(pg_temp.rnd(n, 43), 1000000) / 1000000.0::double precision) ^ 2)::bigint + 1,
       kind,
       status,
       amount,
       CASE WHEN kind = 'payment' THEN round(amount * 0.0055, 2) ELSE 0 END,
       CASE WHEN mod(pg_temp.rnd(n, 44), 4) = 0
            THEN pg_temp.pick('{Lunch,Groceries,Fare,Rent,School fees,Airtime,Water,Medicine}', n, 45) END,
       jsonb_build_object(
           'channel', pg_temp.pick('{stk_push,ussd,qr,till,api}', n, 46),
           'session', md5(n || '.session.' || %(seed)s),
           'ip', '41.90.' || mod(pg_temp.rnd(n, 47), 256) || '.' || mod(pg_temp.rnd(n, 48), 256),
           'attempts', 1 + mod(pg_temp.rnd(n, 49), 3)),
       created,
       CASE WHEN status IN ('completed', 'reversed')
            THEN created + make_interval(secs => 2 + mod(pg_temp.rnd(n, 50), 40)) END
FROM generate_series(1, %(transactions)s::bigint) AS n
CROSS JOIN LATERAL (
    SELECT (CASE WHEN k < 88 THEN 'payment' WHEN k < 92 THEN 'refund' WHEN k < 97 THEN 'settlement' ELSE 'fee' END
           )::transaction_kind AS kind,
           (CASE WHEN s < 93 THEN 'completed' WHEN s < 97 THEN 'failed' WHEN s < 99 THEN 'pending' ELSE 'reversed' END
           )::transaction_status AS status,
           (10 + mod(pg_temp.rnd(n, 51), 490000) / 100.0)::numeric(14, 2) AS amount,
           %(start)s::timestamptz + (n - 1) * ((%(end)s::timestamptz - %(start)s::timestamptz - interval '1 hour')
                                               / %(transactions)s) AS created
    FROM (VALUES (mod(pg_temp.rnd(n, 40), 100), mod(pg_temp.rnd(n, 41), 100))) AS dice (k, s)
) AS event;

INSERT INTO mpesa_receipts (receipt_no, transaction_id, result_code, received_at)
SELECT %(receipt_prefix)s
           || pg_temp.digit36(mixed, 6) || pg_temp.digit36(mixed, 5) || pg_temp.digit36(mixed, 4) || pg_temp.digit36(mixed, 3)
           || pg_temp.digit36(mixed, 2) || pg_temp.digit36(mixed, 1) || pg_temp.digit36(mixed, 0),
       id, 0, completed_at
FROM (SELECT id, completed_at, mod(id * %(receipt_stride)s, %(receipt_block)s) AS mixed
      FROM transactions WHERE kind = 'payment' AND status = 'completed') AS paid;

INSERT INTO ledger.accounts (id, code, name, merchant_id)
VALUES (%(clearing_account)s, 'mpesa.clearing', 'M-Pesa clearing', NULL),
       (%(fee_account)s, 'income.fees', 'Fee income', NULL);
INSERT INTO ledger.accounts (id, code, name, merchant_id)
SELECT %(first_merchant_account)s + id, 'merchant.' || till_number, 'Owed to ' || name, id FROM merchants ORDER BY id;

-- One partition a month, and one for what comes later: the app has no right to make tables.
DO $$
DECLARE month date := %(start)s::date;
BEGIN
    WHILE month < %(end)s::date LOOP
        EXECUTE format('CREATE TABLE ledger.%%I PARTITION OF ledger.entries FOR VALUES FROM (%%L) TO (%%L)',
                       to_char(month, '"entries_"YYYY_MM'), month, month + interval '1 month');
        EXECUTE format('ALTER TABLE ledger.%%I OWNER TO payme_ledger', to_char(month, '"entries_"YYYY_MM'));
        month := month + interval '1 month';
    END LOOP;
    CREATE TABLE ledger.entries_default PARTITION OF ledger.entries DEFAULT;
    ALTER TABLE ledger.entries_default OWNER TO payme_ledger;
END $$;

INSERT INTO ledger.entries (transaction_id, account_id, booked_at, amount)
SELECT t.id, leg.account, t.completed_at, leg.amount
FROM transactions AS t
CROSS JOIN LATERAL (
    VALUES (CASE WHEN kind = 'fee' THEN %(fee_account)s ELSE %(clearing_account)s END,
            CASE WHEN kind = 'payment' THEN t.amount ELSE -t.amount END),
           ((%(first_merchant_account)s + merchant_id)::integer,
            CASE WHEN kind = 'payment' THEN -t.amount ELSE t.amount END)
) AS leg (account, amount)
WHERE t.status = 'completed';

INSERT INTO statements (id, merchant_id, period, status, payments, total, issued_at)
SELECT row_number() OVER (ORDER BY month, merchant_id), merchant_id, daterange(month, (month + interval '1 month')::date),
       CASE WHEN month < %(end)s::date - interval '1 month' THEN 'issued' ELSE 'draft' END::statement_status,
       count(*), sum(amount),
       CASE WHEN month < %(end)s::date - interval '1 month' THEN month + interval '1 month 6 hours' END
FROM (SELECT merchant_id, date_trunc('month', created_at)::date AS month, amount
      FROM transactions WHERE kind = 'payment' AND status = 'completed') AS paid
GROUP BY merchant_id, month;

-- The documents of the first statements, a few to some hundred kilobytes each, belong to the owner of the table.
SET ROLE payme_owner;
UPDATE statements SET pdf = lo_from_bytea(
    500000 + id::integer,
    convert_to('%%PDF-1.4 statement ' || id || repeat(md5(id || '.pdf.' || %(seed)s), (id * id * 20)::integer), 'UTF8'))
WHERE id <= 20;
RESET ROLE;

SELECT setval('users_id_seq', %(users)s), setval('merchants_id_seq', %(merchants)s),
       setval('transactions_id_seq', %(transactions)s), setval('statements_id_seq', greatest(1, (SELECT max(id) FROM statements)));

DROP FUNCTION pg_temp.rnd, pg_temp.pick, pg_temp.digit36;
