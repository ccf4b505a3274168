-- Two tables whose every committed change leaves a row in `audit`, which is not published: what must arrive, in the order
-- in which the changes of each key were made. `v` is never the same twice.
CREATE SEQUENCE version;
CREATE TABLE a (id bigint PRIMARY KEY, v bigint NOT NULL DEFAULT nextval('version'), note text, big text);
ALTER TABLE a ALTER COLUMN big SET STORAGE EXTERNAL;
CREATE TABLE b (LIKE a INCLUDING ALL);
CREATE TABLE audit (seq bigserial PRIMARY KEY, tbl text NOT NULL, op text NOT NULL, id bigint, v bigint, row jsonb);

-- The large value stands in the audit by its beginning and length.
CREATE FUNCTION mark(big text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT left(big, 16) || ':' || length(big) $$;

CREATE FUNCTION write_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO audit (tbl, op) VALUES (TG_TABLE_NAME, 't');
        RETURN NULL;
    END IF;
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
        INSERT INTO audit (tbl, op, id, v) VALUES (TG_TABLE_NAME, 'd', OLD.id, 0);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO audit (tbl, op, id, v, row)
        SELECT TG_TABLE_NAME, CASE WHEN TG_OP = 'UPDATE' AND NEW.id = OLD.id THEN 'u' ELSE 'c' END, NEW.id, NEW.v,
               to_jsonb(NEW) || jsonb_build_object('big', mark(NEW.big));
    END IF;
    RETURN NULL;
END $$;

-- Not for inserts: a BEFORE trigger would make COPY write row by row instead of page by page.
CREATE FUNCTION next_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.v := nextval('version');
    RETURN NEW;
END $$;

CREATE TRIGGER next_version BEFORE UPDATE ON a FOR EACH ROW EXECUTE FUNCTION next_version();
CREATE TRIGGER next_version BEFORE UPDATE ON b FOR EACH ROW EXECUTE FUNCTION next_version();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON a FOR EACH ROW EXECUTE FUNCTION write_audit();
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON b FOR EACH ROW EXECUTE FUNCTION write_audit();
CREATE TRIGGER audit_truncate AFTER TRUNCATE ON a FOR EACH STATEMENT EXECUTE FUNCTION write_audit();
CREATE TRIGGER audit_truncate AFTER TRUNCATE ON b FOR EACH STATEMENT EXECUTE FUNCTION write_audit();
