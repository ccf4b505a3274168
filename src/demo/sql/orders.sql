-- The orders database of the demo shop.
--
-- Replica identity is the default (the primary key) in every table, so long unchanged texts are not in the log.

CREATE TYPE cart_status AS ENUM ('open', 'checked_out');
CREATE TYPE order_status AS ENUM ('pending', 'paid', 'packed', 'shipped', 'delivered', 'cancelled');
CREATE TYPE payment_status AS ENUM ('captured', 'voided', 'refunded');

CREATE TABLE carts (
    id          uuid PRIMARY KEY,                       -- changes when a guest signs in and the carts are merged
    customer_id bigint,                                 -- NULL: a guest
    status      cart_status NOT NULL DEFAULT 'open',
    lines       jsonb NOT NULL DEFAULT '[]',
    coupons     text[] NOT NULL DEFAULT '{}',
    note        text,                                   -- a gift message, sometimes kilobytes
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);
-- Uncompressed, so that long notes really leave the row and their updates are "unchanged TOAST".
ALTER TABLE carts ALTER COLUMN note SET STORAGE EXTERNAL;

CREATE TABLE orders (
    id               uuid PRIMARY KEY,
    number           bigserial NOT NULL UNIQUE,
    cart_id          uuid,
    customer_id      bigint NOT NULL,
    email            text NOT NULL,
    status           order_status NOT NULL DEFAULT 'pending',
    currency         char(3) NOT NULL DEFAULT 'EUR',
    subtotal         numeric(12,2) NOT NULL,
    shipping         numeric(12,2) NOT NULL,
    total            numeric(12,2) NOT NULL,
    shipping_address jsonb NOT NULL,
    tags             text[] NOT NULL DEFAULT '{}',
    client_ip        inet,
    notes            text,
    placed_at        timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE orders ALTER COLUMN notes SET STORAGE EXTERNAL;

CREATE TABLE order_items (
    order_id   uuid NOT NULL REFERENCES orders,
    line_no    integer NOT NULL,
    sku        text NOT NULL,
    title      text NOT NULL,
    quantity   integer NOT NULL CHECK (quantity > 0),
    unit_price numeric(12,2) NOT NULL,
    discount   numeric(5,4) NOT NULL DEFAULT 0,
    attributes jsonb,
    PRIMARY KEY (order_id, line_no)
);

-- A client that hears nothing sends its payment again with the same idempotency key; the shop keeps every attempt as a
-- row. Attempts of one key are written one after the other, each after the commit of the one before (`seq` is their
-- order), and are never changed afterwards.
CREATE TABLE payments (
    id                uuid PRIMARY KEY,
    seq               bigserial NOT NULL,
    order_id          uuid NOT NULL REFERENCES orders,
    idempotency_key   text NOT NULL,
    method            text NOT NULL,
    amount            numeric(12,2) NOT NULL,
    currency          char(3) NOT NULL DEFAULT 'EUR',
    status            payment_status NOT NULL DEFAULT 'captured',
    card_fingerprint  bytea,
    provider_response jsonb,
    created_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON payments (order_id);
CREATE INDEX ON payments (idempotency_key);

CREATE TABLE refunds (
    id              uuid PRIMARY KEY,
    seq             bigserial NOT NULL,
    payment_id      uuid NOT NULL REFERENCES payments,
    order_id        uuid NOT NULL REFERENCES orders,
    idempotency_key text NOT NULL,
    amount          numeric(12,2) NOT NULL,
    reason          text,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON refunds (idempotency_key);

-- Numbers the runs of the load generator, so that two runs never make the same ids.
CREATE SEQUENCE load_runs;
