-- The role that lockstep reads a database as, with no more rights than it needs. Run it in the database, as who owns the tables or as a
-- superuser:
--
--   psql -v role=lockstep -v publication=lockstep -v schema=public -v tables='public.orders, public.order_items' \
--        -f role.sql "postgres://owner@db:5432/shop"
--
-- It sets no password: psql's `\password lockstep` sends it hashed, and leaves it in no log and no history.
-- Running it again changes nothing. What only some features need is below, commented out.

\set ON_ERROR_STOP on

BEGIN;

-- REPLICATION is a right on the whole server: its log can be read, also that of other databases. So give the role no other purpose,
-- and let pg_hba.conf admit it from lockstep's hosts only.
SELECT format('CREATE ROLE %I LOGIN REPLICATION NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS', :'role')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" CONNECTION LIMIT 20;

-- Reads, for the copy, loads and comparisons.
SELECT format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), :'role') \gexec
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT ON :tables TO :"role";

-- The publication stays the owner's: the role cannot put more tables into it. lockstep creates the slot.
SELECT format('CREATE PUBLICATION %I FOR TABLE %s WITH (publish_via_partition_root = true)', :'publication', :'tables')
 WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = :'publication') \gexec

COMMIT;

-- Only where it is used:
--
-- `snapshot_max_load`, `snapshot_max_replica_lag`: see what other sessions and standbys do.
--   GRANT pg_read_all_stats TO lockstep;
--
-- Tables with row-level security: a copy without the rows that it hides would be wrong. Takes a superuser.
--   ALTER ROLE lockstep BYPASSRLS;
--
-- Tables that come by themselves into the publication: it, and the tables, belong to a role that lockstep is a member of. This lets it
-- write those tables as well; without it add tables yourself: ALTER PUBLICATION lockstep ADD TABLE ….
--   ALTER PUBLICATION lockstep OWNER TO shop_owner; GRANT shop_owner TO lockstep;
--
-- `[lease] type = "postgres"`: the row that says who runs. Better in a database of its own.
--   CREATE SCHEMA lockstep; -- and lockstep.lease, as the error that names it says
--   GRANT USAGE ON SCHEMA lockstep TO lockstep; GRANT SELECT, INSERT, UPDATE ON lockstep.lease TO lockstep;
-- … and what sources remember, where a lease goes without a shared directory:
--   GRANT SELECT, INSERT, UPDATE, DELETE ON lockstep.record TO lockstep;
--
-- `two_phase`, and `lockstep transactions list`: nothing more. `resolve` ends what is prepared: PostgreSQL lets only who prepared it, or a
-- superuser. Give the resolver a URL of its own in another file, not this role.
--
-- Ask for loads (`lockstep snapshot`), the reconciler, invariants over the tables above: nothing more. They write logical messages to the log,
-- which anyone may who may call pg_logical_emit_message, and no row.
