-- The inventory database of the demo shop.
--
-- Two sums hold whenever no load runs: in `stock`, `on_hand` and `reserved` are the sums of the movements of that sku and
-- warehouse, and `reserved` is the sum of its held reservations.

CREATE TYPE reservation_state AS ENUM ('held', 'shipped');

CREATE TABLE products (
    sku          text PRIMARY KEY,
    title        text NOT NULL,
    description  text,                                  -- sometimes kilobytes; price changes leave it alone
    category     text NOT NULL,
    price        numeric(12,2) NOT NULL,
    currency     char(3) NOT NULL DEFAULT 'EUR',
    weight_kg    double precision,
    tags         text[] NOT NULL DEFAULT '{}',
    attributes   jsonb NOT NULL DEFAULT '{}',
    image_digest bytea,
    active       boolean NOT NULL DEFAULT true,
    launched_on  date,
    updated_at   timestamptz NOT NULL DEFAULT now()
);
-- Uncompressed, so that long texts really leave the row and their updates are "unchanged TOAST".
ALTER TABLE products ALTER COLUMN description SET STORAGE EXTERNAL;

CREATE TABLE stock (
    sku        text NOT NULL REFERENCES products,
    warehouse  text NOT NULL,
    on_hand    integer NOT NULL,
    reserved   integer NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (sku, warehouse)
);

CREATE TABLE reservations (
    id         uuid PRIMARY KEY,
    order_id   uuid NOT NULL,                           -- in the other database
    sku        text NOT NULL,
    warehouse  text NOT NULL,
    quantity   integer NOT NULL CHECK (quantity > 0),
    state      reservation_state NOT NULL DEFAULT 'held',
    hold_for   interval NOT NULL DEFAULT '30 minutes',
    created_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (sku, warehouse) REFERENCES stock
);
CREATE INDEX ON reservations (order_id);
-- The one table whose updates and deletes carry the whole old row.
ALTER TABLE reservations REPLICA IDENTITY FULL;

CREATE TABLE stock_movements (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sku            text NOT NULL,
    warehouse      text NOT NULL,
    on_hand_delta  integer NOT NULL,
    reserved_delta integer NOT NULL,
    reason         text NOT NULL,
    order_id       uuid,
    occurred_at    timestamptz NOT NULL DEFAULT now()
);
