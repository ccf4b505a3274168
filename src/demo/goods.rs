//! What is sold, and to whom: rows as PostgreSQL reads them, made from random numbers.

use serde_json::json;

use super::random::{Random, Uuid};
use super::rows::{Row, Rows, array, text};

/// Where goods lie.
pub const WAREHOUSES: &[&str] = &["berlin", "porto"];

const ADJECTIVES: &[&str] = &[
    "Quiet",
    "Sturdy",
    "Folding",
    "Café",
    "Everyday",
    "Woollen",
    "Little",
    "Nordic",
    "Solar",
    "Grandma's",
];
const NOUNS: &[&str] = &[
    "Kettle", "Lamp", "Rucksack", "Notebook", "Chair", "Teapot", "Blanket", "Bicycle", "Knife",
    "Hammock",
];
const COLOURS: &[&str] = &["red", "blue", "grün", "weiß", "black", "sand"];
const CATEGORIES: &[&str] = &["kitchen", "outdoor", "office", "living", "bike"];
const TAGS: &[&str] = &[
    "new",
    "sale",
    "gift",
    "eco",
    "best, seller",
    "last \"piece\"",
    "o'clock",
];
const FIRST: &[&str] = &[
    "Ada", "Zoë", "Grace", "José", "Linus", "Aiko", "Søren", "Chidi", "Olga", "Mia",
];
const LAST: &[&str] = &[
    "O'Neill",
    "Müller",
    "García",
    "Nowak",
    "Sato",
    "Okafor",
    "Lindqvist",
    "Smith",
    "Rossi",
    "Ivanova",
];
const CITIES: &[&str] = &[
    "Berlin",
    "São Paulo",
    "Kraków",
    "東京",
    "Lagos",
    "Göteborg",
    "Napoli",
    "Austin",
];
const WORDS: &[&str] = &[
    "light",
    "and",
    "solid",
    "made",
    "by",
    "hand",
    "from",
    "oak,",
    "wool",
    "or",
    "steel;",
    "lasts",
    "for",
    "years",
    "– naturally",
    "🎁",
    "with\ttabs",
    "back\\slash",
    "\"quoted\"",
    "it's",
    "new\nline",
];

/// Number of the product to be sold → its key.
#[must_use]
pub fn sku(product: u64) -> String {
    format!("SKU-{product:06}")
}

/// A product as a shopper sees it; the same for the same number.
#[derive(Clone, Debug)]
pub struct Good {
    /// Key.
    pub sku: String,
    /// What the label says.
    pub title: String,
    /// Price in cents.
    pub cents: u64,
}

/// The product of this number, below the number of products the shop was made with.
#[must_use]
pub fn good(product: u64) -> Good {
    let mut random = Random::new(&[0x600d, product]);
    Good {
        sku: sku(product),
        title: format!("{} {}", random.pick(ADJECTIVES), random.pick(NOUNS)),
        cents: random.between(199, 49_999),
    }
}

/// Text of about `length` bytes with every character that encoders stumble over.
pub fn prose(random: &mut Random, length: usize) -> String {
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(random.pick(WORDS));
    }
    text
}

/// A note: mostly none, now and then short, in a few percent too long to stay in its row.
pub fn note(random: &mut Random) -> Option<String> {
    match random.below(100) {
        0..4 => {
            let length = random.between(3_000, 8_000) as usize;
            Some(prose(random, length))
        }
        4..20 => Some(prose(random, 40)),
        20 => Some(String::new()),
        _ => None,
    }
}

/// A long text in one of eight products.
pub fn description(random: &mut Random) -> Option<String> {
    let length = if random.chance(12) {
        random.between(2_500, 6_000)
    } else {
        random.between(30, 200)
    };
    Some(prose(random, length as usize))
}

/// Up to three tags.
pub fn tags(random: &mut Random) -> Option<String> {
    let count = random.below(4);
    Some(array((0..count).map(|_| random.pick(TAGS))))
}

/// Cents as `numeric(12,2)`.
#[must_use]
pub fn money(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// Columns of [`product`].
pub const PRODUCT_COLUMNS: &[&str] = &[
    "sku",
    "title",
    "description",
    "category",
    "price",
    "weight_kg",
    "tags",
    "attributes",
    "image_digest",
    "active",
    "launched_on",
];

/// A row of `products`.
pub fn product(random: &mut Random, sku: &str, title: &str, cents: u64) -> Row {
    let attributes = json!({
        "colour": random.pick(COLOURS),
        "size": { "w": random.below(100), "h": random.below(100) },
        "rating": random.below(50) as f64 / 10.0,
        "reviews": [random.below(9), null, "5/5"],
    });
    let weight = random.below(40_000) as f64 / 1_000.0;
    vec![
        text(sku),
        text(title),
        description(random),
        text(random.pick(CATEGORIES)),
        text(money(cents)),
        random.chance(90).then(|| weight.to_string()),
        tags(random),
        text(attributes),
        random.chance(50).then(|| random.bytea(32)),
        text(random.chance(95)),
        random.chance(70).then(|| {
            format!(
                "202{}-0{}-1{}",
                random.below(6),
                random.between(1, 9),
                random.below(9)
            )
        }),
    ]
}

/// A customer; the same for the same number.
#[derive(Clone, Debug)]
pub struct Customer {
    /// Number.
    pub id: u64,
    /// Mail address.
    pub email: String,
    /// Where to send things, as JSON.
    pub address: String,
}

/// The customer of this number.
#[must_use]
pub fn customer(id: u64) -> Customer {
    let mut random = Random::new(&[0xc057, id]);
    let (first, last) = (random.pick(FIRST), random.pick(LAST));
    let ascii: String = format!("{first}.{last}")
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '.')
        .collect();
    let address = json!({
        "name": format!("{first} {last}"),
        "street": format!("{} {}", random.pick(&["Main St", "Lindenstraße", "Rua Nova", "ул. Мира"]), random.between(1, 199)),
        "city": random.pick(CITIES),
        "zip": format!("{:05}", random.below(100_000)),
    });
    Customer {
        id,
        email: format!("{}{id}@example.com", ascii.to_lowercase()),
        address: address.to_string(),
    }
}

/// One line of a cart or an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the product.
    pub product: u64,
    /// How many.
    pub quantity: u64,
    /// Index into [`WAREHOUSES`].
    pub warehouse: usize,
}

/// One to five different products, ordered by product, so that all shoppers lock stock in the same order.
pub fn lines(random: &mut Random, products: u64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for _ in 0..random.between(1, 5) {
        let line = Line {
            product: random.popular(products),
            quantity: random.between(1, 3),
            warehouse: random.index(WAREHOUSES.len()),
        };
        if lines.iter().all(|known| known.product != line.product) {
            lines.push(line);
        }
    }
    lines.sort_by_key(|line| line.product);
    lines
}

/// The lines as a cart holds them.
#[must_use]
pub fn lines_json(lines: &[Line]) -> String {
    let lines: Vec<_> = lines
        .iter()
        .map(|line| json!({ "sku": sku(line.product), "quantity": line.quantity }))
        .collect();
    json!(lines).to_string()
}

/// A cart, for `COPY` and `INSERT` alike.
pub fn cart(random: &mut Random, id: Uuid, customer: Option<u64>, lines: &[Line]) -> Row {
    let coupons = random.chance(10).then_some("WELCOME10");
    vec![
        text(id),
        customer.map(|id| id.to_string()),
        text(lines_json(lines)),
        Some(array(coupons)),
        note(random),
    ]
}

/// Columns of [`cart`].
pub const CART_COLUMNS: &[&str] = &["id", "customer_id", "lines", "coupons", "note"];

/// What one purchase writes into the orders database.
#[derive(Debug)]
pub struct Purchase {
    /// Key of the order.
    pub id: Uuid,
    /// Price of everything with shipping, in cents.
    pub total: u64,
    /// The row of `orders`.
    pub order: Rows,
    /// The rows of `order_items`.
    pub items: Rows,
}

/// Puts an order together. `placed` is `None` for now; `gift_note` is there once `orders` has the column.
pub fn purchase(
    random: &mut Random,
    id: Uuid,
    cart: Option<Uuid>,
    status: &str,
    customer: &Customer,
    lines: &[Line],
) -> Purchase {
    let mut items = Rows::new(
        "order_items",
        &[
            "order_id",
            "line_no",
            "sku",
            "title",
            "quantity",
            "unit_price",
            "discount",
            "attributes",
        ],
    );
    let mut subtotal = 0;
    for (number, line) in (1..).zip(lines) {
        let good = good(line.product);
        subtotal += good.cents * line.quantity;
        let wrap = json!({ "wrap": random.pick(COLOURS), "engraving": null });
        items.rows.push(vec![
            text(id),
            text(number),
            text(good.sku),
            text(good.title),
            text(line.quantity),
            text(money(good.cents)),
            text(if random.chance(15) { "0.1250" } else { "0" }),
            random.chance(10).then(|| wrap.to_string()),
        ]);
    }
    let shipping = if subtotal > 10_000 { 0 } else { 590 };
    let total = subtotal + shipping;
    let mut order = Rows::new(
        "orders",
        &[
            "id",
            "cart_id",
            "customer_id",
            "email",
            "status",
            "subtotal",
            "shipping",
            "total",
            "shipping_address",
            "tags",
            "client_ip",
            "notes",
        ],
    );
    let ip = if random.chance(20) {
        format!("2001:db8::{:x}", random.below(0xffff))
    } else {
        format!("203.0.113.{}", random.below(256))
    };
    order.rows.push(vec![
        text(id),
        cart.map(|id| id.to_string()),
        text(customer.id),
        text(&customer.email),
        text(status),
        text(money(subtotal)),
        text(money(shipping)),
        text(money(total)),
        text(&customer.address),
        tags(random),
        random.chance(95).then_some(ip),
        note(random),
    ]);
    Purchase {
        id,
        total,
        order,
        items,
    }
}

/// Columns of [`payment`].
pub const PAYMENT_COLUMNS: &[&str] = &[
    "id",
    "order_id",
    "idempotency_key",
    "method",
    "amount",
    "card_fingerprint",
    "provider_response",
];

/// A payment attempt. Attempts of one order share the idempotency key.
pub fn payment(random: &mut Random, order: Uuid, cents: u64) -> Row {
    let response = json!({
        "provider": random.pick(&["acme-pay", "paybird"]),
        "risk": random.below(1_000) as f64 / 1_000.0,
        "3ds": random.chance(50),
    });
    let method = random.pick(&["card", "wallet", "invoice"]);
    vec![
        text(random.uuid()),
        text(order),
        text(format!("pay_{order}")),
        text(method),
        text(money(cents)),
        (method == "card").then(|| random.bytea(20)),
        text(response),
    ]
}

/// A day of the year before the shop opened to the load.
pub fn past(random: &mut Random) -> Option<String> {
    Some(format!(
        "2025-{:02}-{:02} {:02}:{:02}:{:02}.{:06}+00",
        random.between(1, 12),
        random.between(1, 28),
        random.below(24),
        random.below(60),
        random.below(60),
        random.below(1_000_000)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_distinct_and_ordered() {
        let mut random = Random::new(&[1]);
        for _ in 0..1_000 {
            let lines = lines(&mut random, 20);
            assert!(!lines.is_empty());
            assert!(lines.is_sorted_by(|a, b| a.product < b.product));
        }
    }

    #[test]
    fn an_order_adds_up() {
        let mut random = Random::new(&[2]);
        let lines = lines(&mut random, 20);
        let id = random.uuid();
        let purchase = purchase(&mut random, id, None, "pending", &customer(7), &lines);
        let sum: u64 = lines
            .iter()
            .map(|line| good(line.product).cents * line.quantity)
            .sum();
        assert!(purchase.total == sum || purchase.total == sum + 590);
        assert_eq!(purchase.items.rows.len(), lines.len());
        assert_eq!(purchase.order.rows[0].len(), purchase.order.columns.len());
    }

    #[test]
    fn money_has_two_digits() {
        assert_eq!(money(5), "0.05");
        assert_eq!(money(123_456), "1234.56");
    }
}
