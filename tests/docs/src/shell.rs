//! A page's commands and statements as one program for the shell, in their order.

use crate::page::{Block, Page};

/// What stands before them.
const BEFORE: &str = include_str!("shell.sh");

/// What a page takes for granted before its first command.
const TAKEN_FOR_GRANTED: &[(&str, &str)] = &[(
    "docs/two-phase-commit.md",
    // A slot is made when nothing is prepared.
    "begin_pipeline shop.toml
statements \"$ORDERS_URL\" <<'END'
BEGIN; INSERT INTO orders (sku) VALUES ('A-1'); PREPARE TRANSACTION 'purchase-17';
END
",
)];

/// Whether a block is run: commands, and statements of SQL.
#[must_use]
pub fn is_run(block: &Block) -> bool {
    matches!(
        &*block.language,
        "sh" | "bash" | "console" | "shell" | "sql"
    )
}

/// The program of those blocks of a page that `runs` has something against nothing of.
#[must_use]
pub fn program(page: &Page, runs: fn(&Block) -> bool) -> String {
    let mut out = format!("{BEFORE}\nPAGE='{}'\n", page.name);
    let before = TAKEN_FOR_GRANTED
        .iter()
        .filter(|(name, _)| *name == page.name);
    out.extend(before.map(|(_, commands)| *commands));
    for block in page
        .blocks
        .iter()
        .filter(|block| is_run(block) && runs(block))
    {
        out += &format!("AT={}\n", block.line);
        out += &match &*block.language {
            "sql" => statements(block),
            "console" => typed(&block.text),
            _ => block.text.clone(),
        };
        out.push('\n');
    }
    out
}

/// Statements, in the database that the first line names (`-- in inventory`) or the page is about.
fn statements(block: &Block) -> String {
    let first = block.text.lines().next().unwrap_or_default();
    let place = match first.strip_prefix("-- in ") {
        Some("orders") => "$ORDERS_URL",
        Some("inventory") => "$INVENTORY_URL",
        _ => "$SQL_URL",
    };
    format!(
        "statements \"{place}\" <<'END_OF_SQL'\n{}END_OF_SQL\n",
        block.text
    )
}

/// What is typed behind `$ `, without what is answered.
fn typed(text: &str) -> String {
    let mut out = String::new();
    let mut goes_on = false;
    for line in text.lines() {
        let Some(line) = line.strip_prefix("$ ").or_else(|| goes_on.then_some(line)) else {
            continue;
        };
        goes_on = line.ends_with('\\');
        out += line;
        out.push('\n');
    }
    out
}
