//! Opening: connect, become the holder, learn how far the former one got, see that everything is there.

use std::sync::Arc;

use lapin::types::ShortString;
use lockstep_core::Result;
use lockstep_core::sink::SinkContext;
use lockstep_encode::plans::Plans;

use crate::config::RabbitmqConfig;
use crate::flight::{Flight, What};
use crate::holder::{self, Holder};
use crate::link::{Events, Link};
use crate::message::{Message, persistent};
use crate::progress::Book;
use crate::routes::Routes;
use crate::topology::Topology;
use crate::worker::Worker;

/// Everything that has to be done before the first record. Dropping it ends the connection.
pub(crate) async fn open(config: &RabbitmqConfig, context: &SinkContext) -> Result<Worker> {
    let (pipeline, name) = (&*context.pipeline, &*context.name);
    let mut book = Book::new(pipeline, name, context.token, config.progress_queue)?;
    let routes = Routes::new(config)?;
    let link = Link::open(config, &connection_name(pipeline, name)).await?;
    let events = link.events();
    let holder = Holder::take(&link, holder::queue_name(pipeline, name)?, &book).await?;
    let is_new = book.read(&link).await?;
    let mut topology = Topology::new(config)?;
    let mut known = Plans::new();
    for table in &context.tables {
        let route = Arc::new(routes.of(table)?);
        topology.ensure(&link, table, &route.exchange).await?;
        known.get(table, |_| route);
    }
    let channel = link.confirming().await?;
    let mut flight = Flight::new();
    if is_new {
        // A token has to be there before anything is written by it; and a queue that is empty is one that somebody looks into.
        let message = progress_message(&mut book);
        let default = ShortString::default();
        flight.publish(
            &channel,
            &default,
            book.queue.clone(),
            message,
            What::Progress,
        )?;
        while !flight.is_empty() {
            flight.landed().await?;
        }
        if let Some((_, error)) = flight.refusal() {
            return Err(error);
        }
        flight.advance();
    }
    Ok(Worker::new(
        config,
        context.trouble.clone(),
        Parts {
            link,
            events,
            holder,
            book,
            routes,
            topology,
            known,
            channel,
            flight,
        },
    ))
}

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) link: Link,
    pub(crate) events: Events,
    pub(crate) holder: Holder,
    pub(crate) book: Book,
    pub(crate) routes: Routes,
    pub(crate) topology: Topology,
    pub(crate) known: Plans<Arc<crate::routes::Route>>,
    pub(crate) channel: lapin::Channel,
    pub(crate) flight: Flight,
}

/// As operators see it in their list of connections.
pub(crate) fn connection_name(pipeline: &str, sink: &str) -> String {
    format!("lockstep {pipeline}/{sink}")
}

pub(crate) fn progress_message(book: &mut Book) -> Message {
    let body = book.write();
    Message {
        properties: persistent(),
        bytes: body.len(),
        body,
    }
}
