//! What `lockstep check` finds out about a broker. Changes nothing on it: what it makes is gone with its connection, and what it
//! publishes reaches no queue.

use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Confirmation, Event};
use lockstep_core::check::Finding;
use lockstep_core::error::Policy;
use lockstep_core::{Error, ErrorKind, Result};

use crate::config::RabbitmqConfig;
use crate::error::is_not_found;
use crate::holder::own_queue;
use crate::link::{self, Events, Link};
use crate::message::persistent;
use crate::open::connection_name;
use crate::routes::Routes;

/// How long a broker may take to confirm a message before it counts as blocked.
const PROBE: Duration = Duration::from_secs(3);

pub(crate) async fn run(config: &RabbitmqConfig, pipeline: &str, name: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    match greet(config).await {
        Ok(greeting) => findings.push(Finding::pass("broker", greeting)),
        Err(error) => return vec![failed("broker", &error)],
    }
    let link = match Link::open(config, &connection_name(pipeline, name)).await {
        Ok(link) => link,
        Err(error) => {
            findings.push(failed("connection", &error));
            return findings;
        }
    };
    let mut events = link.events();
    findings.push(Finding::pass(
        "connection",
        format!("{}, heartbeat {:?}", link.place, link.heartbeat),
    ));
    match Routes::new(config) {
        Ok(routes) => findings.extend(exchange(config, &link, &routes).await),
        Err(error) => findings.push(failed("exchange", &error)),
    }
    findings.push(own_queues(&link, pipeline, name).await);
    findings.push(alarms(&link, &mut events, pipeline, name).await);
    link.close().await;
    findings
}

async fn greet(config: &RabbitmqConfig) -> Result<String> {
    let mut last = None;
    for endpoint in config.endpoints()? {
        match link::greeting(config, &endpoint).await {
            Ok(greeting) => return Ok(greeting),
            Err(error) if error.kind().policy() == Policy::Stop => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Config, "there is no URL")))
}

fn failed(subject: &str, error: &Error) -> Finding {
    let remedy = error.remedy_text().unwrap_or("see the broker's log");
    let text = error.to_string();
    let text = text
        .strip_prefix(error.kind().code())
        .unwrap_or(&text)
        .trim_start();
    let detail = text.split(". Remedy: ").next().unwrap_or(text);
    Finding::fail(subject, detail, remedy)
}

/// Whether the exchange is there and may be written to, and whether a queue would take what is written.
async fn exchange(config: &RabbitmqConfig, link: &Link, routes: &Routes) -> Vec<Finding> {
    let Some(exchange) = routes.shared_exchange() else {
        let detail = "one for each table or source: looked at when the sink is opened";
        return vec![Finding::pass("exchange", detail)];
    };
    if exchange.is_empty() {
        return vec![queue_of_that_name(config, link, routes).await];
    }
    let subject = format!("exchange {exchange}");
    let Ok(name) = ShortString::try_new(exchange) else {
        return vec![Finding::fail(
            subject,
            "its name is too long",
            "choose a shorter one",
        )];
    };
    let declared = config.declare.as_ref().and_then(|declare| declare.exchange);
    match (exists(link, &name).await, declared) {
        (Ok(true), _) => {}
        (Ok(false), Some(_)) => {
            return vec![Finding::pass(
                subject,
                "does not exist yet and will be made",
            )];
        }
        (Ok(false), None) => {
            let remedy = "create it, or let lockstep create it: declare = { exchange = \"topic\" }";
            return vec![Finding::fail(subject, "does not exist", remedy)];
        }
        (Err(error), _) => return vec![failed(&subject, &error)],
    }
    let mut findings = vec![match writable(link, &name).await {
        Ok(()) => Finding::pass(subject, "exists, and may be written to"),
        Err(error) => failed(&subject, &error),
    }];
    let queues = config
        .declare
        .as_ref()
        .map_or(0, |declare| declare.queues.len());
    if queues == 0 {
        findings.push(Finding::pass(
            "bindings",
            "what no queue takes comes back and is put aside (LS009, `unroutable`): a broker cannot be asked beforehand",
        ));
    }
    findings
}

async fn exists(link: &Link, exchange: &ShortString) -> Result<bool> {
    let channel = link.channel().await?;
    let options = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let kind = lapin::ExchangeKind::default();
    let declared = channel.exchange_declare(exchange.clone(), kind, options, FieldTable::default());
    match declared.await {
        Ok(()) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => {
            Err(link.failed(format!("exchange `{exchange}` cannot be looked at"), &error))
        }
    }
}

/// Publishes what the broker refuses for its form, which it looks at after the rights and before the queues.
async fn writable(link: &Link, exchange: &ShortString) -> Result<()> {
    let channel = link.confirming().await?;
    let sent = channel.basic_publish(
        exchange.clone(),
        "lockstep.check".into(),
        BasicPublishOptions::default(),
        b"{}",
        persistent().with_expiration("never".into()),
    );
    let answer = async { sent.await?.await };
    let Ok(answer) = tokio::time::timeout(PROBE, answer).await else {
        // Told by the look at alarms.
        return Ok(());
    };
    match answer {
        Ok(_) => Ok(()),
        Err(error) if error.to_string().contains("expiration") => Ok(()),
        Err(error) => Err(link.failed(
            format!("exchange `{exchange}` cannot be written to"),
            &error,
        )),
    }
}

/// With the default exchange, whose routing keys are names of queues.
async fn queue_of_that_name(config: &RabbitmqConfig, link: &Link, routes: &Routes) -> Finding {
    let Some(key) = routes.shared_key() else {
        let detail = "the default one: what names no queue comes back and is put aside (LS009, `unroutable`)";
        return Finding::pass("exchange", detail);
    };
    let subject = format!("queue {key}");
    let mut queues = config.declare.iter().flat_map(|declare| &declare.queues);
    if queues.any(|queue| queue.name == key) {
        return Finding::pass(subject, "will be made where it is missing");
    }
    match passive(link, key).await {
        Ok(true) => Finding::pass(subject, "exists"),
        Ok(false) => Finding::fail(
            subject,
            "does not exist: all that is written would come back",
            "create it, or let lockstep create it by `declare`",
        ),
        Err(error) => failed(&subject, &error),
    }
}

async fn passive(link: &Link, queue: &str) -> Result<bool> {
    let Ok(name) = ShortString::try_new(queue) else {
        return Ok(false);
    };
    let channel = link.channel().await?;
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    match channel
        .queue_declare(name, options, FieldTable::default())
        .await
    {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(false),
        // Another connection's own: it is there.
        Err(error) if crate::error::is_locked(&error) => Ok(true),
        Err(error) => Err(link.failed(format!("queue `{queue}` cannot be looked at"), &error)),
    }
}

/// Whether queues like the sink's own can be made, read and written: by one that is gone with the connection.
async fn own_queues(link: &Link, pipeline: &str, name: &str) -> Finding {
    let subject = "own queues";
    match try_own_queue(link, pipeline, name).await {
        Ok(()) => Finding::pass(subject, "lockstep.* can be made, written and read"),
        Err(error) => failed(subject, &error),
    }
}

async fn try_own_queue(link: &Link, pipeline: &str, name: &str) -> Result<()> {
    let queue = own_queue("check", pipeline, name)?;
    let channel = link.confirming().await?;
    let options = QueueDeclareOptions {
        exclusive: true,
        ..QueueDeclareOptions::default()
    };
    let what = format!("queue `{queue}` cannot be made, written and read");
    let tried = async {
        let table = FieldTable::default();
        channel.queue_declare(queue.clone(), options, table).await?;
        let get = BasicGetOptions { no_ack: true };
        channel.basic_get(queue.clone(), get).await
    };
    tried
        .await
        .map(drop)
        .map_err(|error| link.failed(what, &error))
}

/// Whether the broker takes messages at all: by one that no queue takes.
async fn alarms(link: &Link, events: &mut Events, pipeline: &str, name: &str) -> Finding {
    let subject = "alarms";
    let nobody = match own_queue("nobody", pipeline, name) {
        Ok(nobody) => nobody,
        Err(error) => return failed(subject, &error),
    };
    let channel = match link.confirming().await {
        Ok(channel) => channel,
        Err(error) => return failed(subject, &error),
    };
    let mandatory = BasicPublishOptions {
        mandatory: true,
        ..BasicPublishOptions::default()
    };
    let default = ShortString::default();
    let sent = channel.basic_publish(default, nobody, mandatory, b"{}", persistent());
    let confirmed = async { sent.await?.await };
    let blocked = async {
        loop {
            match events.next().await {
                Some(Event::ConnectionBlocked(reason)) => return reason,
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    };
    let remedy = "free memory or disk of the broker (rabbitmqctl status), or raise vm_memory_high_watermark, disk_free_limit";
    tokio::select! {
        reason = blocked => Finding::fail(subject, format!("the broker takes no messages: {reason}"), remedy),
        confirmed = confirmed => match confirmed {
            Ok(Confirmation::Ack(_)) => Finding::pass(subject, "none: messages are confirmed"),
            Ok(_) => Finding::warn(subject, "a message was not confirmed", "see the broker's log"),
            Err(error) => failed(subject, &link.failed("the default exchange cannot be written to", &error)),
        },
        () = tokio::time::sleep(PROBE) => Finding::warn(
            subject,
            format!("the broker has not confirmed a message within {PROBE:?}"),
            remedy,
        ),
    }
}
