-- What the differential test against Debezium runs on both sides. Sections begin with a line `-- == NAME`:
-- `tables` and `rows` are there before the snapshot, `stream` comes after it. The last record of the stream is the insert
-- into `done`.

-- == tables
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION ltree;
CREATE EXTENSION isn;
CREATE EXTENSION cube;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy "very"');
CREATE TYPE address AS (street text, number int);
CREATE TYPE floatrange AS RANGE (subtype = float8);
CREATE DOMAIN price AS numeric(10,2);
CREATE DOMAIN short_name AS varchar(20);
CREATE DOMAIN tags AS text[];

CREATE TABLE types (
    id int PRIMARY KEY,
    c_bool bool,
    c_int2 int2,
    c_int4 int4,
    c_int8 int8,
    c_oid oid,
    c_float4 float4,
    c_float8 float8,
    c_numeric_10_2 numeric(10,2),
    c_numeric_5 numeric(5),
    c_numeric_40_20 numeric(40,20),
    c_numeric numeric,
    c_money money,
    c_char char(5),
    c_varchar varchar(20),
    c_text text,
    c_citext citext,
    c_internal_char "char",
    c_xml xml,
    c_name name,
    c_bytea bytea,
    c_bit1 bit(1),
    c_bit5 bit(5),
    c_bit20 bit(20),
    c_bit64 bit(64),
    c_varbit1 varbit(1),
    c_varbit10 varbit(10),
    c_varbit varbit,
    c_uuid uuid,
    c_json json,
    c_jsonb jsonb,
    c_hstore hstore,
    c_ltree ltree,
    c_isbn isbn,
    c_inet inet,
    c_cidr cidr,
    c_macaddr macaddr,
    c_macaddr8 macaddr8,
    c_int4range int4range,
    c_int8range int8range,
    c_numrange numrange,
    c_daterange daterange,
    c_tsrange tsrange,
    c_tstzrange tstzrange,
    c_floatrange floatrange,
    c_mood mood,
    c_price price,
    c_short_name short_name,
    c_tsvector tsvector,
    c_point point,
    c_line line,
    c_lseg lseg,
    c_box box,
    c_path path,
    c_polygon polygon,
    c_circle circle,
    c_multirange int4multirange,
    c_tsquery tsquery,
    c_pg_lsn pg_lsn,
    c_txid_snapshot txid_snapshot,
    c_cube cube,
    c_address address,
    c_xid xid,
    c_regclass regclass,
    c_date date,
    c_time time,
    c_time0 time(0),
    c_time3 time(3),
    c_time4 time(4),
    c_timetz timetz,
    c_timetz3 timetz(3),
    c_timestamp timestamp,
    c_timestamp0 timestamp(0),
    c_timestamp3 timestamp(3),
    c_timestamp4 timestamp(4),
    c_timestamptz timestamptz,
    c_timestamptz0 timestamptz(0),
    c_timestamptz3 timestamptz(3),
    c_interval interval,
    c_interval3 interval(3),
    c_interval_ym interval year to month
);

CREATE TABLE arrays (
    id int PRIMARY KEY,
    a_bool bool[],
    a_int2 int2[],
    a_int4 int4[],
    a_int8 int8[],
    a_oid oid[],
    a_float4 float4[],
    a_float8 float8[],
    a_numeric numeric[],
    a_numeric_10_2 numeric(10,2)[],
    a_money money[],
    a_char char(3)[],
    a_varchar varchar(10)[],
    a_text text[],
    a_citext citext[],
    a_name name[],
    a_xml xml[],
    a_bytea bytea[],
    a_bit1 bit(1)[],
    a_bit3 bit(3)[],
    a_uuid uuid[],
    a_json json[],
    a_jsonb jsonb[],
    a_hstore hstore[],
    a_ltree ltree[],
    a_inet inet[],
    a_cidr cidr[],
    a_macaddr macaddr[],
    a_int4range int4range[],
    a_tsrange tsrange[],
    a_mood mood[],
    a_price price[],
    a_tags tags,
    a_point point[],
    a_box box[],
    a_date date[],
    a_time time[],
    a_time3 time(3)[],
    a_timetz timetz[],
    a_timestamp timestamp[],
    a_timestamp3 timestamp(3)[],
    a_timestamptz timestamptz[],
    a_timestamptz3 timestamptz(3)[],
    a_interval interval[]
);

-- Values that cannot be inline: stored outside the row and never compressed.
CREATE TABLE toast (
    id int PRIMARY KEY,
    n int,
    b_text text,
    b_varchar varchar,
    b_json json,
    b_jsonb jsonb,
    b_xml xml,
    b_citext citext,
    b_bytea bytea,
    b_hstore hstore,
    b_tsvector tsvector,
    b_numeric numeric,
    b_varbit varbit,
    b_text_array text[],
    b_varchar_array varchar[],
    b_int2_array int2[],
    b_int4_array int4[],
    b_int8_array int8[],
    b_float8_array float8[],
    b_numeric_array numeric[],
    b_bool_array bool[],
    b_date_array date[],
    b_timestamp_array timestamp[],
    b_timestamptz_array timestamptz[],
    b_uuid_array uuid[],
    b_bytea_array bytea[],
    b_json_array json[],
    b_jsonb_array jsonb[],
    b_mood_array mood[]
);
ALTER TABLE toast
    ALTER b_text SET STORAGE EXTERNAL, ALTER b_varchar SET STORAGE EXTERNAL, ALTER b_json SET STORAGE EXTERNAL,
    ALTER b_jsonb SET STORAGE EXTERNAL, ALTER b_xml SET STORAGE EXTERNAL, ALTER b_citext SET STORAGE EXTERNAL,
    ALTER b_bytea SET STORAGE EXTERNAL, ALTER b_hstore SET STORAGE EXTERNAL, ALTER b_tsvector SET STORAGE EXTERNAL,
    ALTER b_numeric SET STORAGE EXTERNAL, ALTER b_varbit SET STORAGE EXTERNAL, ALTER b_text_array SET STORAGE EXTERNAL,
    ALTER b_varchar_array SET STORAGE EXTERNAL, ALTER b_int2_array SET STORAGE EXTERNAL,
    ALTER b_int4_array SET STORAGE EXTERNAL, ALTER b_int8_array SET STORAGE EXTERNAL,
    ALTER b_float8_array SET STORAGE EXTERNAL, ALTER b_numeric_array SET STORAGE EXTERNAL,
    ALTER b_bool_array SET STORAGE EXTERNAL, ALTER b_date_array SET STORAGE EXTERNAL,
    ALTER b_timestamp_array SET STORAGE EXTERNAL, ALTER b_timestamptz_array SET STORAGE EXTERNAL,
    ALTER b_uuid_array SET STORAGE EXTERNAL, ALTER b_bytea_array SET STORAGE EXTERNAL,
    ALTER b_json_array SET STORAGE EXTERNAL, ALTER b_jsonb_array SET STORAGE EXTERNAL,
    ALTER b_mood_array SET STORAGE EXTERNAL;

CREATE TABLE full_rows (id int PRIMARY KEY, n int, note text, amount numeric(10,2), made timestamptz);
ALTER TABLE full_rows REPLICA IDENTITY FULL;
ALTER TABLE full_rows ALTER note SET STORAGE EXTERNAL;

-- The key's order is not the table's.
CREATE TABLE keys (a int, b text, c int NOT NULL, d timestamptz, e numeric(6,2), PRIMARY KEY (b, a));
-- Keys of types that are not written as they are printed.
CREATE TABLE odd_keys (k timestamptz, l bytea, m numeric(6,2), n bool, PRIMARY KEY (k, l, m, n));
CREATE TABLE no_key (n int, note text);
ALTER TABLE no_key REPLICA IDENTITY FULL;
CREATE TABLE "Odd.Name" ("Select" int PRIMARY KEY, "with ""quotes"" and é" text);
CREATE TABLE defaults (id int PRIMARY KEY, a int DEFAULT 5, b bool DEFAULT true, s text DEFAULT 'x');
CREATE TABLE required (
    id int PRIMARY KEY, i int NOT NULL, t text NOT NULL, b bool NOT NULL, d date NOT NULL, z timestamptz NOT NULL,
    n numeric(10,2) NOT NULL, l int[] NOT NULL
);
CREATE TABLE emptied (id int PRIMARY KEY);
CREATE TABLE emptied_too (id int PRIMARY KEY);
CREATE TABLE done (id int PRIMARY KEY);

-- == rows
INSERT INTO types VALUES (
    1, true, 32767, 2147483647, 9223372036854775807, 4294967295, 1.5, 123.456, 123.45, 12345,
    12345678901234567890.12345678901234567890, 123.4500, 1234.56, 'ab', 'varchar é', 'text "quoted" \ back
new line	tab', 'CiText', 'x', '<a b="c">d</a>', 'nm', '\xdeadbeef00ff', B'1', B'10101', B'11111111111111111111',
    B'1000000000000000000000000000000000000000000000000000000000000001', B'1', B'1010', B'110011001100',
    'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{"b": 1,  "a": [1, 2.50]}', '{"b": 1,  "a": [1, 2.50]}', 'k1=>v1',
    'Top.Science.Astronomy', '0-393-04002-X', '192.168.0.1/24', '10.0.0.0/8', '08:00:2b:01:02:03',
    '08:00:2b:01:02:03:04:05', '[1,10)', '(1,100]', '[1.5,2.5]', '[2024-01-01,2024-02-01)',
    '[2024-01-01 00:00:00,2024-01-02 00:00:00)', '[2024-01-01 00:00:00+02,2024-01-02 00:00:00+02)', '[1.5,2.5)',
    'happy "very"', 9.99, 'short', to_tsvector('simple', 'a fat cat'), '(1.5,-2)', '{1,-1,0}', '[(0,0),(1,1)]',
    '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1),(1,0))', '<(0,0),1>', '{[1,3),[5,7)}', 'fat & cat', '16/B374D848',
    '10:20:10,14,15', '(1,2)', ROW('Main St', 5), '801', 'types', '2024-02-29', '13:51:30.123456', '13:51:30',
    '13:51:30.123', '13:51:30.1234', '13:51:30.123456+02', '13:51:30.123+02', '2024-02-29 13:51:30.123456',
    '2024-02-29 13:51:30', '2024-02-29 13:51:30.123', '2024-02-29 13:51:30.1234', '2024-02-29 13:51:30.123456+02',
    '2024-02-29 13:51:30+02', '2024-02-29 13:51:30.12+02', '1 year 2 mons 3 days 04:05:06.789', '04:05:06.789',
    '1 year 2 mons'
);
INSERT INTO types (id) VALUES (2);
INSERT INTO types (id, c_bool, c_int2, c_int4, c_int8, c_oid, c_float4, c_float8, c_numeric_10_2, c_numeric_5,
    c_numeric_40_20, c_numeric, c_money, c_char, c_varchar, c_text, c_bytea, c_bit1, c_bit5, c_bit20, c_varbit1,
    c_varbit10, c_varbit, c_json, c_jsonb, c_hstore, c_inet, c_int4range, c_point, c_date, c_time, c_time0, c_time3,
    c_timetz, c_timestamp, c_timestamp0, c_timestamp3, c_timestamptz, c_timestamptz0, c_timestamptz3, c_interval,
    c_interval_ym)
VALUES (3, false, -32768, -2147483648, -9223372036854775808, 0, 0, 0, 0, 0, 0, 0, 0, '', '', '', '', B'0', B'00000',
    B'00000000000000000001', B'0', B'', B'', 'null', 'null', '', '::1', 'empty', '(0,0)', '1970-01-01', '00:00:00',
    '00:00:00', '00:00:00', '00:00:00+00', '1970-01-01 00:00:00', '1970-01-01 00:00:00', '1970-01-01 00:00:00',
    '1970-01-01 00:00:00+00', '1970-01-01 00:00:00+00', '1970-01-01 00:00:00+00', '0', '-10 mons');
INSERT INTO types (id, c_float4, c_float8, c_numeric_10_2, c_numeric_5, c_numeric_40_20, c_numeric, c_money, c_char,
    c_text, c_bit64, c_varbit, c_json, c_jsonb, c_hstore, c_int4range, c_point, c_time, c_time3, c_timetz, c_interval)
VALUES (4, 1e-45, 1e300, -0.01, -99999, -0.00000000000000000001, 100000000000000000000, -0.01, 'żółw', 'żółw €😀' || chr(1) || chr(127),
    B'0000000000000000000000000000000000000000000000000000000000000000', B'0000000000000000', '"text"', '"text"',
    '"a b"=>"c\"d", e=>NULL', '[,5)', '(-1e300,1e-10)', '24:00:00', '24:00:00', '24:00:00+00',
    '-10 mons -3 days +04:05:06.7');
INSERT INTO types (id, c_float4, c_float8, c_numeric, c_numeric_10_2, c_numeric_40_20, c_point, c_interval)
VALUES (5, 3.4028235e38, 1e-10, 0.00000000000000000001, 99999999.99, 99999999999999999999.99999999999999999999,
    '(0.1,100)', '-00:00:00.000001'),
    (6, 16777216, 10000000, 10000000, -1.28, 1e-20, '(1e7,0.001)', '178000000 years'),
    (7, 1e-3, 9999999, -129, 1.27, -1, '(1,2)', '1 mon'),
    (8, 0.00012, 5e-324, 123456789012345678901234567890.123456789, 0.1, 1, '(-0,0)', '2000000:00:54.775807'),
    (9, 1.17549435e-38, 2.2250738585072014e-308, -0.5, 0.5, 0.5, '(1e-7,123456789)', '1000000 days 00:00:00.5'),
    (10, 33554432, 1.7976931348623157e308, 0.10, 10, 10, '(12345678.9,-0.00123)', '-1 years -2 mons +3 days -04:00:00');
INSERT INTO types (id, c_float4, c_float8) VALUES (11, 'NaN', 'NaN'), (12, 'Infinity', 'Infinity'), (13, '-Infinity', '-Infinity'),
    (14, '-0', '-0');
INSERT INTO types (id, c_numeric, c_numeric_10_2) VALUES (15, 'NaN', 'NaN');
INSERT INTO types (id, c_numeric) VALUES (16, 'Infinity'), (17, '-Infinity');
INSERT INTO types (id, c_date, c_timestamp, c_timestamp3, c_timestamptz, c_timestamptz3) VALUES
    (20, 'infinity', 'infinity', 'infinity', 'infinity', 'infinity'),
    (21, '-infinity', '-infinity', '-infinity', '-infinity', '-infinity'),
    (22, '0044-03-15 BC', '0044-03-15 00:00:00 BC', '0044-03-15 00:00:00 BC', '0044-03-15 00:00:00+00 BC', '0044-03-15 00:00:00+00 BC'),
    (23, '1582-10-10', '1582-10-10 12:00:00', '1582-10-10 12:00:00', '1582-10-10 12:00:00+00', '1582-10-10 12:00:00+00'),
    (24, '99999-12-31', '99999-12-31 23:59:59', '99999-12-31 23:59:59', '99999-12-31 23:59:59+00', '99999-12-31 23:59:59+00'),
    (25, '1969-12-31', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999', '1969-12-31 23:59:59.999999+00', '1969-12-31 23:59:59.999+00'),
    (26, '0001-01-01', '0001-01-01 00:00:00', '0001-01-01 00:00:00', '0001-01-01 00:00:00+00', '0001-01-01 00:00:00+00'),
    (27, '9999-12-31', '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999', '9999-12-31 23:59:59.999999+00', '9999-12-31 23:59:59.999+00'),
    (28, '5874897-12-31', '294276-12-31 23:59:59.999999', '294276-12-31 23:59:59.999', '294276-12-31 23:59:59.999999+00', '294276-12-31 23:59:59.999+00');

INSERT INTO arrays VALUES (
    1, '{t,f,NULL}', '{1,NULL,-3}', '{1,NULL,3}', '{1,NULL,9223372036854775807}', '{4294967295}', '{1.5,NULL,NaN}',
    '{1e300,NULL,0}', '{1.10,NULL,100}', '{1.10,NULL}', '{1.50}', '{a,NULL}', '{abc,NULL}', '{"a b","q\"q","",NULL,"NULL"}',
    '{Ab}', '{nm}', '{<a/>}', '{"\\xdead",NULL}', '{0,1}', '{101}', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}',
    ARRAY['{"a": 1}'::json], ARRAY['{"a": 1}'::jsonb, 'null'], ARRAY['k1=>v1'::hstore], '{a.b}', '{10.0.0.1}',
    '{10.0.0.0/8}', '{08:00:2b:01:02:03}', '{"[1,10)"}', '{"[2024-01-01 00:00:00,2024-01-02 00:00:00)"}', '{sad,"happy \"very\""}',
    '{9.99}', '{a,b}', '{"(1,2)"}', '{(1,1),(0,0);(2,2),(1,1)}', '{2024-02-29,NULL}', '{13:51:30.123456}', '{13:51:30.123}',
    '{13:51:30+02}', '{"2024-02-29 13:51:30.123456"}', '{"2024-02-29 13:51:30.123"}', '{"2024-02-29 13:51:30+02"}',
    '{"2024-02-29 13:51:30.12+02"}', '{1 mon}'
);
INSERT INTO arrays (id) VALUES (2);
INSERT INTO arrays (id, a_int4, a_text, a_numeric, a_timestamptz, a_bytea, a_mood, a_bool, a_date) VALUES (3, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}');
INSERT INTO arrays (id, a_int4, a_text) VALUES (4, '{{1,2},{3,4}}', '{{a,b},{c,NULL}}');
INSERT INTO arrays (id, a_numeric, a_date) VALUES (5, '{1,NaN}', '{infinity,-infinity}');

INSERT INTO toast SELECT i, 1, big, big, json_build_object('a', big), jsonb_build_object('a', big), ('<a>' || big || '</a>')::xml,
    big, decode(repeat('deadbeef', 2000), 'hex'), hstore('a', big), to_tsvector('simple', words), repeat('9', 9000)::numeric,
    repeat('10', 20000)::varbit, ARRAY[big], ARRAY[big], array_fill(1::int2, ARRAY[5000]), array_fill(1::int4, ARRAY[3000]),
    array_fill(1::int8, ARRAY[3000]), array_fill(1.5::float8, ARRAY[3000]), array_fill(1.5::numeric, ARRAY[3000]),
    array_fill(true, ARRAY[9000]), array_fill('2024-02-29'::date, ARRAY[3000]),
    array_fill('2024-02-29 00:00:00'::timestamp, ARRAY[3000]), array_fill('2024-02-29 00:00:00+00'::timestamptz, ARRAY[3000]),
    array_fill('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid, ARRAY[1000]), ARRAY[decode(repeat('deadbeef', 2000), 'hex')],
    ARRAY[json_build_object('a', big)], ARRAY[jsonb_build_object('a', big)], array_fill('ok'::mood, ARRAY[3000])
FROM generate_series(1, 2) i,
    (SELECT string_agg(md5(g::text), '') big, string_agg('w' || g, ' ') words FROM generate_series(1, 300) g) made;
INSERT INTO full_rows VALUES (1, 1, repeat('long ', 2000), 1.5, '2024-02-29 00:00:00+00'), (2, 2, NULL, NULL, NULL);
INSERT INTO keys VALUES (1, 'k', 5, '2024-02-29 00:00:00+00', 1.5), (2, 'k', 6, NULL, NULL);
INSERT INTO odd_keys VALUES ('2024-02-29 00:00:00+00', '\xdead', 1.5, true);
INSERT INTO no_key VALUES (1, 'a'), (2, NULL);
INSERT INTO "Odd.Name" VALUES (1, 'a');
INSERT INTO defaults VALUES (1, NULL, NULL, NULL), (2, 1, false, 'y');
INSERT INTO required VALUES (1, 1, 'a', true, '2024-02-29', '2024-02-29 00:00:00+00', 1.5, '{1}');
INSERT INTO emptied VALUES (1);
INSERT INTO emptied_too VALUES (1);

-- == stream
CREATE TEMP TABLE again AS SELECT * FROM types;
UPDATE again SET id = id + 100;
INSERT INTO types SELECT * FROM again;
CREATE TEMP TABLE arrays_again AS SELECT * FROM arrays;
UPDATE arrays_again SET id = id + 100;
INSERT INTO arrays SELECT * FROM arrays_again;
UPDATE types SET c_text = 'changed' WHERE id = 1;
UPDATE types SET id = 1000 WHERE id = 1;
DELETE FROM types WHERE id = 2;

UPDATE toast SET n = 2 WHERE id = 1;
UPDATE toast SET id = 11 WHERE id = 1;
DELETE FROM toast WHERE id = 2;

BEGIN;
UPDATE full_rows SET n = 10 WHERE id = 1;
UPDATE full_rows SET id = 11 WHERE id = 1;
DELETE FROM full_rows WHERE id = 2;
COMMIT;

BEGIN;
INSERT INTO keys VALUES (3, 'm', 7, NULL, NULL);
UPDATE keys SET c = 8 WHERE a = 3;
UPDATE keys SET a = 4 WHERE a = 3;
UPDATE keys SET b = 'moved' WHERE a = 1;
DELETE FROM keys WHERE a = 2;
COMMIT;
UPDATE odd_keys SET k = '2024-03-01 00:00:00+00';
DELETE FROM odd_keys;
INSERT INTO no_key VALUES (3, 'c');
UPDATE no_key SET note = 'b' WHERE n = 1;
DELETE FROM no_key WHERE n = 2;
INSERT INTO "Odd.Name" VALUES (2, 'b');
DELETE FROM "Odd.Name" WHERE "Select" = 1;
INSERT INTO defaults VALUES (3, NULL, NULL, NULL);
DELETE FROM required;
TRUNCATE emptied, emptied_too;
SELECT pg_logical_emit_message(true, 'my-prefix', 'hello');
SELECT pg_logical_emit_message(false, 'my-prefix', '\x00ff'::bytea);
INSERT INTO done VALUES (1);
