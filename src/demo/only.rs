//! `lockstep demo --only …`: the shop without its pipeline, beside one that runs elsewhere.

use std::process::ExitCode;

use lockstep_core::Error;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::args::{DemoArgs, Only};
use super::load::{Event, Load, LoadOptions};
use super::shop::{DEFAULT_CUSTOMERS, Shop};
use crate::cli::Format;
use crate::{Outcome, output, run};

/// Does this part, and says what it has done.
pub async fn part(args: &DemoArgs, part: Only) -> Outcome {
    let stop = CancellationToken::new();
    run::stop_on_signals(stop.clone())?;
    match part {
        Only::Fill => fill(args).await?,
        Only::Shop => shop(args, &stop).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the shop. One that is there is left as it is, so that this can stand before every start of what needs it.
async fn fill(args: &DemoArgs) -> Result<(), Error> {
    let made = Shop::is_made(&args.orders_url, &args.inventory_url).await?;
    if !made {
        Shop::create(&args.orders_url, &args.inventory_url, args.shop()).await?;
    }
    let told = match made {
        true => "The shop is there already.",
        false => "The shop's two databases are filled.",
    };
    say(args.format, told, &json!({ "filled": !made }));
    Ok(())
}

/// Shops until told to stop; what has begun comes to its end.
async fn shop(args: &DemoArgs, stop: &CancellationToken) -> Result<(), Error> {
    let shop = Shop::open(&args.orders_url, &args.inventory_url, DEFAULT_CUSTOMERS).await?;
    let load = Load::start(&shop, endless(args)).await?;
    if args.format == Format::Table {
        let told = format!(
            "Shopping, {} purchases a second, until told to stop.",
            args.rate
        );
        output::print(&format!("{told}\n"));
    }
    stop.run_until_cancelled(load.finished()).await;
    let report = load.stop().await?;
    let (purchases, changes) = (
        report.counts.event(Event::Purchase),
        report.counts.changes(),
    );
    let told = format!(
        "{purchases} {}, {changes} changes.",
        Event::Purchase.label(purchases)
    );
    say(
        args.format,
        &told,
        &json!({ "purchases": purchases, "changes": changes }),
    );
    Ok(())
}

/// Nothing but shopping: what the demo does once has no place in a load without an end.
fn endless(args: &DemoArgs) -> LoadOptions {
    LoadOptions {
        duration: None,
        import: None,
        schema_change: None,
        ..args.load()
    }
}

fn say(format: Format, text: &str, answer: &serde_json::Value) {
    match format {
        Format::Table => output::print(&format!("{text}\n")),
        Format::Json => output::print_json(answer),
    }
}
