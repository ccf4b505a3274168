//! Who is let in, and to what: TLS, passwords, virtual hosts, rights.

use lockstep_core::ErrorKind;
use lockstep_core::check::Verdict;
use lockstep_core::sink::SinkFactory;
use lockstep_kit::rabbitmq::{Rabbitmq, RabbitmqOptions};
use lockstep_kit::{Component, require_own, unique};
use lockstep_sink_rabbitmq::RabbitmqSinkFactory;
use serde_json::json;

use crate::support::{Shop, Tap, config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why() {
    require_own!(Component::Rabbitmq);
    let broker = Rabbitmq::start(RabbitmqOptions {
        ssl: true,
        ..RabbitmqOptions::default()
    })
    .await;
    let (name, shop) = (unique("secured"), Shop::new());
    let target =
        json!({"exchange": "", "routing_key": name, "declare": {"queues": [{"name": name}]}});
    let with_tls = |tls: serde_json::Value| {
        let mut section = target.clone();
        section["tls"] = tls;
        section
    };
    let port = broker.port();

    // TLS, with the authority of the broker's certificate, and with another one.
    let files = broker.certificates();
    let good = config(&broker.ssl_url(), &with_tls(json!({"ca": files.ca})));
    let mut sink = shop.open(&good, &name).await.expect("opens");
    let durable = sink.write(shop.items(10, [1])).await.expect("taken");
    durable.await.expect("durable");
    sink.close().await.expect("closes");
    let client = json!({"ca": files.ca, "cert": files.client, "key": files.client_key});
    let sink = shop
        .open(&config(&broker.ssl_url(), &with_tls(client)), &name)
        .await;
    sink.expect("opens").close().await.expect("closes");
    let other = config(&broker.ssl_url(), &with_tls(json!({"ca": files.other_ca})));
    let error = shop.open(&other, &name).await.err().expect("not trusted");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
    assert!(error.to_string().contains("tls.ca"), "{error}");
    let elsewhere = broker.ssl_url().replace("127.0.0.1", "127.0.0.2");
    let elsewhere = config(&elsewhere, &with_tls(json!({"ca": files.ca})));
    let error = shop
        .open(&elsewhere, &name)
        .await
        .err()
        .expect("another address");
    assert_eq!(error.kind(), ErrorKind::Setup, "{error}");

    let url = |user: &str, vhost: &str| format!("amqp://{user}@127.0.0.1:{port}{vhost}");
    let error_of = async |url: &str| {
        let opened = shop.open(&config(url, &target), &name).await;
        opened.err().expect("not let in")
    };
    let error = error_of(&url("guest:hunter2", "")).await;
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert!(!error.to_string().contains("hunter2"), "{error}");
    for vhost in ["/nowhere", "/"] {
        let error = error_of(&url("guest:guest", vhost)).await;
        assert_eq!(error.kind(), ErrorKind::Setup, "{error}");
        assert!(error.to_string().contains("vhost"), "{error}");
    }

    // Rights: on the vhost, on the exchange, on the sink's own queues.
    broker.ctl(&["add_user", "shop", "secret"]).await;
    let error = error_of(&url("shop:secret", "")).await;
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    let allow = async |configure: &str, write: &str, read: &str| {
        broker
            .ctl(&["set_permissions", "-p", "/", "shop", configure, write, read])
            .await;
    };
    allow("^$", ".*", ".*").await;
    let error = error_of(&url("shop:secret", "")).await;
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    assert!(error.to_string().contains("set_permissions"), "{error}");
    let section = config(&url("shop:secret", ""), &target);
    let findings = RabbitmqSinkFactory::preflight(&section, &name, "sink").await;
    let own = findings
        .iter()
        .find(|finding| finding.subject == "own queues");
    assert_eq!(own.expect("looked at").verdict, Verdict::Fail);

    // As the remedy says, with an exchange that may not be written to.
    let tap = Tap::new(broker.url()).await;
    tap.exchange(&name).await;
    tap.queue(&name, &[], Some((&name, "#"))).await;
    allow(
        r"^lockstep[.]",
        r"^(amq[.]default|lockstep[.].*)$",
        r"^lockstep[.]",
    )
    .await;
    let section = config(&url("shop:secret", ""), &json!({"exchange": name}));
    let findings = RabbitmqSinkFactory::preflight(&section, &name, "sink").await;
    let exchange = findings
        .iter()
        .find(|finding| finding.subject.starts_with("exchange"));
    assert_eq!(
        exchange.expect("looked at").verdict,
        Verdict::Fail,
        "{findings:?}"
    );
    let mut sink = shop.open(&section, &name).await.expect("opens");
    let refused = sink.write(shop.items(20, [2])).await.expect("taken").await;
    let error = refused.expect_err("not allowed");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    drop(sink);
    allow(r"^lockstep[.]", ".*", r"^lockstep[.]").await;
    let mut sink = shop.open(&section, &name).await.expect("opens");
    let durable = sink.write(shop.items(20, [2])).await.expect("taken");
    durable.await.expect("durable");
    sink.close().await.expect("closes");
}
