//! Blocks that are not run here, and why.

use std::fs;

use lockstep_docs::page::{Block, Page};
use lockstep_docs::root;

/// A block, or several that begin alike.
pub struct Exempt {
    /// The page.
    pub page: &'static str,
    /// Its language.
    pub language: &'static str,
    /// What it begins with; nothing for all of this language on the page.
    pub begins: &'static str,
    /// Why it is not run.
    pub why: Why,
}

/// Why a block is not run.
pub enum Why {
    /// It is, by this test, which reads the page or has its statements.
    By(&'static str),
    /// It cannot be here.
    Not(&'static str),
}

use Why::{By, Not};

const ALL: &[Exempt] = &[
    of(
        "README.md",
        "sh",
        "make demo",
        Not(
            "each is a whole run of minutes; tests/e2e runs the demo, tests/torture a short form of the others",
        ),
    ),
    of(
        "README.md",
        "sh",
        "helm install",
        By("tests/chart/tests/it/cases.rs"),
    ),
    of(
        "benches/README.md",
        "sh",
        "",
        Not("measures for minutes; its program is run by hand"),
    ),
    of(
        "deploy/helm/lockstep/README.md",
        "sh",
        "kubectl create namespace",
        By("tests/chart/tests/it/cases.rs"),
    ),
    of(
        "deploy/compose/README.md",
        "sh",
        "docker compose",
        Not("needs a Docker engine; tests/image reads the file and runs the pipeline in it"),
    ),
    of(
        "deploy/image/README.md",
        "sh",
        "docker build",
        Not("needs a Docker engine; tests/image reads the file"),
    ),
    of(
        "docs/connections.md",
        "toml",
        "[sinks.events]",
        Not(
            "needs a build with `kafka-ssl`; sinks/kafka/tests/broker/encrypted.rs has the same properties",
        ),
    ),
    of(
        "docs/monitoring.md",
        "sh",
        "cargo build --release -p lockstep --features otel",
        Not("needs a build with `otel`; tests/otel runs one"),
    ),
    of("docs/security.md", "mermaid", "", Not("a drawing")),
    of(
        "docs/security.md",
        "nginx",
        "",
        Not("a part of the configuration of a proxy that is not installed here"),
    ),
    of(
        "docs/start.md",
        "sh",
        "cargo build --release",
        Not("the build of the command, which this test runs"),
    ),
    of(
        "docs/postgresql.md",
        "sql",
        "-- on the primary: a physical slot",
        By("tests/e2e/tests/it/failover.rs"),
    ),
    of(
        "docs/leases.md",
        "sql",
        "UPDATE checkpoint SET …",
        Not("a form, with what is to be filled in"),
    ),
    of(
        "docs/reliability.md",
        "sh",
        "make torture",
        Not("an hour of faults; tests/torture has a short form"),
    ),
    of(
        "docs/two-phase-commit.md",
        "sql",
        "",
        By("transactions/tests/it/guide.rs"),
    ),
    of(
        "docs/two-phase-commit.md",
        "rust",
        "let coordinator = ",
        By("transactions/tests/it/guide.rs"),
    ),
    of(
        "docs/two-phase-commit.md",
        "rust",
        "",
        By("transactions/tests/it/guide.rs"),
    ),
    of(
        "docs/two-phase-commit.md",
        "java",
        "",
        By("transactions/tests/it/guide.rs"),
    ),
    of(
        "docs/two-phase-commit.md",
        "python",
        "",
        By("transactions/tests/it/guide.rs"),
    ),
    of(
        "sinks/redis/README.md",
        "python",
        "def covered",
        Not("a form for readers' own programs"),
    ),
    of(
        "sinks/search/README.md",
        "sh",
        "curl -s $URL/lockstep-progress",
        Not("needs an index with `gtx_epoch`"),
    ),
    of(
        "sinks/webhook/README.md",
        "python",
        "import base64",
        By("sinks/webhook/tests/readme.rs"),
    ),
    of(
        "tests/kit/README.md",
        "sh",
        "tests/kit/install",
        Not("it is what installs the servers of this test"),
    ),
    of(
        "tests/kit/README.md",
        "rust",
        "",
        Not("a form of a test, with a function that is not there"),
    ),
];

const fn of(page: &'static str, language: &'static str, begins: &'static str, why: Why) -> Exempt {
    Exempt {
        page,
        language,
        begins,
        why,
    }
}

impl Exempt {
    fn is_about(&self, block: &Block) -> bool {
        self.page == block.page
            && self.language == block.language
            && block.text.starts_with(self.begins)
    }
}

/// Whether a block is listed.
pub fn is(block: &Block) -> bool {
    ALL.iter().any(|one| one.is_about(block))
}

/// What is listed in vain: blocks that are not there any more, and tests that do not know the page.
pub fn in_vain(pages: &[Page]) -> Vec<String> {
    let mut out = Vec::new();
    for one in ALL {
        let place = format!("{} ({}) `{}`", one.page, one.language, one.begins);
        let there = pages
            .iter()
            .flat_map(|page| &page.blocks)
            .any(|block| one.is_about(block));
        if !there {
            out.push(format!("{place}: listed, and there is no such block"));
        }
        match one.why {
            By(test) if fs::read_to_string(root().join(test)).is_err() => {
                out.push(format!("{place}: there is no {test}"))
            }
            Not("") => out.push(format!("{place}: no reason")),
            _ => {}
        }
    }
    out
}
